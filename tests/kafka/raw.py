"""Requests and replies of Kafka as bytes, for conversations that no client would have. kafka-python writes and reads them."""

import struct
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from kafka.protocol.consumer import (
    FetchRequest,
    FetchResponse,
    ListOffsetsRequest,
    ListOffsetsResponse,
    OffsetCommitRequest,
    OffsetCommitResponse,
)
from kafka.protocol.metadata import MetadataRequest, MetadataResponse
from kafka.protocol.producer import ProduceRequest, ProduceResponse
from kafka.record.memory_records import MemoryRecordsBuilder

from parsers.kafka.metadata import Metadata

# What the parser makes of a Metadata reply.


def read_metadata(frame: bytes, version: int, grants: Callable[[str], bool] | None = None) -> tuple[Metadata, dict[bytes, str]]:
    """A whole reply, and the names that it has for ids of topics."""
    reading, at, ids = Metadata(version, len(frame), grants), 0, {}
    while not reading.over:
        at += reading.read(frame[at:])
        ids |= reading.topic_ids
    return reading, ids


def filter_metadata(frame: bytes, version: int, grants: Callable[[str], bool]) -> bytes:
    return b"".join(read_metadata(frame, version, grants)[0].told())


Topic = str | bytes  # its name, or its id
Errors = dict[Topic, int]

_REPLIES: dict[int, Any] = {
    0: ProduceResponse,
    1: FetchResponse,
    2: ListOffsetsResponse,
    3: MetadataResponse,
    8: OffsetCommitResponse,
}


def encoded(message: Any, correlation_id: int, client_id: str | None = None) -> bytes:
    if message.is_request():
        message.with_header(correlation_id=correlation_id, client_id=client_id)
    else:
        message.with_header(correlation_id=correlation_id)
    return bytes(message.encode(header=True, framed=True))


def records(value: bytes) -> bytes:
    """A batch of one record."""
    builder = MemoryRecordsBuilder(magic=2, compression_type=0, batch_size=len(value) + 1024)
    builder.append(timestamp=None, key=None, value=value)
    builder.close()
    return bytes(builder.buffer())


def header(key: int, version: int, correlation_id: int, client_id: str) -> bytes:
    """As it is in versions without tagged fields."""
    return struct.pack(f">hhih{len(client_id)}s", key, version, correlation_id, len(client_id), client_id.encode())


def sized(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def frame(exactly: Callable[[int], bytes]) -> bytes:
    """Read one frame by a function that reads so many bytes, or fewer at the end."""
    size = exactly(4)
    return size + exactly(int.from_bytes(size, "big")) if len(size) == 4 else size


def _identity(topic: Topic, field: str = "name") -> dict[str, Any]:
    return {"topic_id": uuid.UUID(bytes=topic)} if isinstance(topic, bytes) else {field: topic}


def produce(number: int, version: int, topics: Iterable[Topic], acks: int = -1, value: bytes = b"value") -> bytes:
    data = ProduceRequest.TopicProduceData
    partition = data.PartitionProduceData(index=0, records=records(value))
    told = [data(partition_data=[partition], **_identity(topic)) for topic in topics]
    return encoded(
        ProduceRequest(version=version, transactional_id=None, acks=acks, timeout_ms=10_000, topic_data=told), number
    )


def fetch(number: int, version: int, topics: Iterable[Topic], session: tuple[int, int] = (0, -1)) -> bytes:
    """Of what is there at once."""
    topic = FetchRequest.FetchTopic
    partition = topic.FetchPartition(
        partition=0,
        current_leader_epoch=-1,
        fetch_offset=0,
        last_fetched_epoch=-1,
        log_start_offset=-1,
        partition_max_bytes=100,
    )
    request = FetchRequest(
        version=version, replica_id=-1, max_wait_ms=0, min_bytes=0, max_bytes=1000, isolation_level=0,
        session_id=session[0], session_epoch=session[1], forgotten_topics_data=[], rack_id="",
        topics=[topic(partitions=[partition], **_identity(name, "topic")) for name in topics],
    )  # fmt: skip
    return encoded(request, number)


def list_offsets(number: int, version: int, topics: Iterable[str]) -> bytes:
    topic = ListOffsetsRequest.ListOffsetsTopic
    partition = topic.ListOffsetsPartition(partition_index=0, current_leader_epoch=-1, timestamp=-1)
    told = [topic(name=name, partitions=[partition]) for name in topics]
    return encoded(ListOffsetsRequest(version=version, replica_id=-1, isolation_level=0, topics=told, timeout_ms=1000), number)


def metadata(number: int, version: int, topics: Sequence[str] | None) -> bytes:
    """None: of all topics."""
    named = None if topics is None else [MetadataRequest.MetadataRequestTopic(name=name) for name in topics]
    request = MetadataRequest(
        version=version, topics=named, allow_auto_topic_creation=False,
        include_cluster_authorized_operations=False, include_topic_authorized_operations=False,
    )  # fmt: skip
    return encoded(request, number)


def offset_commit(number: int, version: int, group: str, topics: Iterable[str]) -> bytes:
    topic = OffsetCommitRequest.OffsetCommitRequestTopic
    partition = topic.OffsetCommitRequestPartition(
        partition_index=0, committed_offset=0, committed_leader_epoch=-1, committed_metadata=""
    )
    request = OffsetCommitRequest(
        version=version, group_id=group, generation_id_or_member_epoch=-1, member_id="", group_instance_id=None,
        retention_time_ms=-1, topics=[topic(name=name, partitions=[partition]) for name in topics],
    )  # fmt: skip
    return encoded(request, number)


def errors(frame: bytes, api_key: int, version: int) -> Errors:
    """The error of each topic's only partition, or of the topic itself; of a whole reply."""
    reply = _REPLIES[api_key].decode(frame, version=version, header=True, framed=True)
    if api_key == 3:
        return {topic.name: topic.error_code for topic in reply.topics}
    assert getattr(reply, "error_code", 0) in (0, None), f"error {reply.error_code} of the whole"
    partitions = {0: "partition_responses"}.get(api_key, "partitions")
    told = reply.topics if api_key in (2, 8) else reply.responses
    found: Errors = {}
    for topic in told:
        by_id = getattr(topic, "topic_id", None)
        name = by_id.bytes if by_id is not None and by_id.int else getattr(topic, "name", None) or topic.topic
        (partition,) = getattr(topic, partitions)
        found[name] = partition.error_code
    return found


def produced(number: int, version: int, topics: Iterable[str]) -> bytes:
    """A broker's reply: all well."""
    topic = ProduceResponse.TopicProduceResponse
    partition = topic.PartitionProduceResponse(
        index=0, error_code=0, base_offset=7, log_append_time_ms=-1, log_start_offset=0, record_errors=[], error_message=None
    )
    told = [topic(name=name, partition_responses=[partition]) for name in topics]
    return encoded(ProduceResponse(version=version, responses=told, throttle_time_ms=0), number)

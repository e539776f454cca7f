"""What a Kafka request is taken to ask for, byte by byte, and what is refused. Class "Kafka" of the security checklist."""

from struct import pack

import pytest
from kafka.protocol.consumer import FetchRequest

from parsers.kafka import frame as frames
from parsers.kafka.frame import FRAME_MAX, MalformedError, UnsupportedError
from parsers.kafka.request import (
    MAX_ELEMENTS,
    MAX_NAME_BYTES,
    MAX_RESOURCES,
    MAX_STEPS,
    Request,
    look,
    skim,
    skim_prefix,
)
from tests.property.kafka_words import Writer

PRODUCE, FETCH, METADATA, FIND_COORDINATOR, API_VERSIONS = 0, 1, 3, 10, 18
ID = bytes(range(1, 17))


def framed(api_key: int, version: int, body: bytes, client: bytes | None = b"me", tags: bytes = b"") -> bytes:
    name = pack(">h", -1) if client is None else pack(">h", len(client)) + client
    message = pack(">hhi", api_key, version, 7) + name + tags + body
    return pack(">i", len(message)) + message


def flexible(api_key: int, version: int, body: bytes) -> bytes:
    return framed(api_key, version, body, tags=b"\0")


def string(text: bytes) -> bytes:
    return pack(">h", len(text)) + text


def compact(text: bytes) -> bytes:
    assert len(text) < 127
    return bytes([len(text) + 1]) + text


def metadata(*names: bytes) -> bytes:
    return framed(METADATA, 1, pack(">i", len(names)) + b"".join(map(string, names)))


def refused(data: bytes) -> str:
    with pytest.raises(MalformedError) as caught:
        skim(data)
    return caught.value.reason


PRODUCE_9 = flexible(
    PRODUCE, 9, b"\0" + pack(">hi", 1, 1000) + b"\2" + compact(b"orders") + b"\2" + pack(">i", 3) + b"\5abcd\0\0\0"
)


# What is read


def test_a_produce_request_names_topics_and_says_whether_it_wants_a_reply() -> None:
    request = skim(PRODUCE_9)
    assert (request.api_key, request.api, request.version, request.correlation_id, request.client_id) == (
        0,
        "Produce",
        9,
        7,
        "me",
    )
    (topic,) = request.topics
    assert (topic.name, topic.topic_id, topic.partitions) == ("orders", None, ())
    assert PRODUCE_9[topic.start : topic.end] == compact(b"orders") + b"\2" + pack(">i", 3) + b"\5abcd\0\0"
    assert request.array is not None
    start, end, number = request.array
    assert (PRODUCE_9[start:end], number) == (b"\2", 1)
    assert (request.acks, request.all_topics, request.groups, request.size) == (1, False, (), len(PRODUCE_9))


def test_a_produce_request_to_one_topic_is_determined_before_its_records() -> None:
    determined = skim(PRODUCE_9).determined
    assert PRODUCE_9[:determined].endswith(compact(b"orders"))
    early = skim_prefix(PRODUCE_9[:determined])
    assert early is not None
    assert early.topics[0].name == "orders"
    assert skim_prefix(PRODUCE_9[: determined - 1]) is None


def test_a_produce_request_to_two_topics_is_determined_at_the_second() -> None:
    topics = b"".join(compact(name) + b"\2" + pack(">i", 3) + b"\5abcd\0\0" for name in (b"a", b"secret"))
    data = flexible(PRODUCE, 9, b"\0" + pack(">hi", 0, 1000) + b"\3" + topics + b"\0")
    assert data[: skim(data).determined].endswith(compact(b"secret"))
    assert [topic.name for topic in skim(data).topics] == ["a", "secret"]


def test_the_client_id_is_never_compact_and_may_be_null() -> None:
    body = b"\1\1\0"
    assert skim(framed(API_VERSIONS, 3, body, b"an id", b"\0")).client_id == "an id"
    assert skim(framed(API_VERSIONS, 3, body, None, b"\0")).client_id is None
    assert skim(framed(API_VERSIONS, 0, b"", b"")).client_id == ""


@pytest.mark.parametrize(
    ("version", "body", "everything"),
    [
        (0, b"\0\0\0\0", True),
        (1, b"\0\0\0\0", False),
        (1, b"\xff\xff\xff\xff", True),
        (12, b"\0\1\0\0", True),
        (12, b"\1\1\0\0", False),
    ],
)
def test_metadata_asks_for_all_topics_in_the_way_of_its_version(version: int, body: bytes, everything: bool) -> None:
    request = skim(framed(METADATA, version, body, tags=b"\0" if version > 8 else b""))
    assert (request.all_topics, request.topics) == (everything, ())


def test_a_fetch_names_its_session_its_partitions_and_what_it_forgets() -> None:
    head = pack(">iiib", 500, 1, 1000, 0) + pack(">ii", 77, 4)
    partitions = b"".join(pack(">iiqiqi", number, -1, 0, -1, 0, 99) + b"\0" for number in (5, 3))
    body = head + b"\2" + ID + b"\3" + partitions + b"\0" + b"\2" + bytes(16) + b"\2" + pack(">i", 8) + b"\0" + b"\1\0"
    request = skim(flexible(FETCH, 15, body))
    (topic,), (forgotten,) = request.topics, request.forgotten
    assert (topic.name, topic.topic_id, topic.partitions) == (None, ID, (5, 3))
    assert (forgotten.name, forgotten.topic_id, forgotten.partitions) == (None, None, (8,))
    assert request.session == (77, 4)


@pytest.mark.parametrize(("kind", "groups", "ids"), [(0, ("k",), ()), (1, (), ("k",)), (2, ("k",), ())])
def test_a_coordinator_is_looked_for_by_group_or_by_transaction(kind: int, groups: tuple[str], ids: tuple[str]) -> None:
    request = skim(framed(FIND_COORDINATOR, 1, string(b"k") + bytes([kind])))
    assert (request.groups, request.transactional_ids) == (groups, ids)
    assert refused(framed(FIND_COORDINATOR, 1, string(b"k") + b"\3")) == "unknown-key-type"


def test_of_resources_with_a_configuration_topics_and_groups_are_named() -> None:
    resources = [(2, b"orders"), (4, b"1"), (32, b"billing")]
    body = pack(">i", 3) + b"".join(bytes([kind]) + string(name) + b"\xff\xff\xff\xff" for kind, name in resources)
    request = skim(framed(32, 0, body))
    assert ([topic.name for topic in request.topics], request.groups) == (["orders"], ("billing",))
    assert [one.resource for one in request.named] == ["topic:orders", "broker:1", "group:billing"]
    assert request.array is not None
    assert request.array[2] == 3


@pytest.mark.parametrize(
    ("kind", "called"), [(8, "brokerLogger:1"), (16, "clientMetrics:1"), (0, "cluster:1"), (77, "cluster:1")]
)
def test_of_resources_with_a_configuration_the_others_are_the_clusters(kind: int, called: str) -> None:
    request = skim(framed(32, 0, pack(">i", 1) + bytes([kind]) + string(b"1") + b"\xff\xff\xff\xff"))
    assert (request.topics, request.groups, [one.resource for one in request.named]) == ((), (), [called])


def test_what_only_brokers_ask_of_each_other_is_told() -> None:
    for version in (1, 12, 15, 18):
        for replica in (-1, 0, 5):
            assert raw_fetch(version, replica).of_brokers == (replica >= 0)
    for version in range(6):
        assert skim(Writer("of brokers").frame(24, version)).of_brokers == (version >= 4)
    for kind in (0, 1, 2):
        assert skim(framed(FIND_COORDINATOR, 1, string(b"k") + bytes([kind]))).of_brokers == (kind == 2)


def raw_fetch(version: int, replica: int) -> Request:
    """What is read of a Fetch of nothing, by a client (-1) or by the broker of this number."""
    fields = {"replica_id": replica} if version < 15 else {"replica_state": FetchRequest.ReplicaState(replica_id=replica)}
    request = FetchRequest(
        version=version, max_wait_ms=0, min_bytes=0, max_bytes=1000, isolation_level=0, session_id=0, session_epoch=-1,
        forgotten_topics_data=[], rack_id="", topics=[], **fields,
    )  # fmt: skip
    request.with_header(correlation_id=1, client_id="c")
    return skim(bytes(request.encode(header=True, framed=True)))


def test_groups_and_transactional_ids_of_an_array_are_told_apart() -> None:
    names = pack(">i", 2) + string(b"billing") + string(b"audit")
    request = skim(framed(15, 0, names))
    assert [one.resource for one in request.named] == ["group:billing", "group:audit"]
    assert request.groups == ("billing", "audit")
    assert request.array == (16, 20, 2)
    assert [(one.start, one.end) for one in request.named] == [(20, 29), (29, 36)]
    compact_names = b"\3" + compact(b"billing") + compact(b"audit")
    request = skim(flexible(65, 0, compact_names + b"\0"))
    assert [one.resource for one in request.named] == ["transactionalId:billing", "transactionalId:audit"]
    for kind, found in ((0, "group:"), (1, "transactionalId:")):
        request = skim(flexible(FIND_COORDINATOR, 4, bytes([kind]) + compact_names + b"\0"))
        assert [one.resource for one in request.named] == [f"{found}billing", f"{found}audit"]


def test_groups_with_all_of_their_topics_are_told_apart() -> None:
    def asked(*topics: bytes) -> Request:
        groups = [compact(name) + tail + b"\0" for name, tail in zip((b"billing", b"audit"), topics, strict=False)]
        return skim(flexible(9, 8, bytes([len(groups) + 1]) + b"".join(groups) + b"\0\0"))

    whole = asked(b"\0", b"\0")
    assert [one.resource for one in whole.named] == ["group:billing", "group:audit"]
    assert whole.array == (17, 18, 2)
    assert [(one.start, one.end) for one in whole.named] == [(18, 28), (28, 36)]
    for topics in ((b"\0", b"\1"), (b"\1", b"\0"), (b"\1", b"\1"), (b"\1",)):
        assert asked(*topics).named == ()


def test_share_coordinators_are_for_brokers_and_not_told_apart() -> None:
    request = skim(flexible(FIND_COORDINATOR, 6, b"\2" + b"\3" + compact(b"a") + compact(b"b") + b"\0"))
    assert (request.groups, request.named, request.array) == (("a", "b"), (), None)


def test_an_acl_may_be_about_any_topic() -> None:
    assert skim(framed(29, 0, b"\2" + string(b"orders") + b"\xff\xff\xff\xff" + b"\2\3")).all_topics


def test_unknown_tagged_fields_are_stepped_over() -> None:
    tags = b"\2\7\3abc\x64\0"
    data = framed(METADATA, 12, b"\2" + bytes(16) + compact(b"orders") + tags + b"\1\0" + tags, tags=tags)
    assert [topic.name for topic in skim(data).topics] == ["orders"]


def test_names_that_no_topic_can_have_stay_as_they_are() -> None:
    names = [b"x" * 300, "größe/..".encode(), b""]
    assert [topic.name for topic in skim(metadata(*names)).topics] == [name.decode() for name in names]


# What is refused


def test_whatever_is_cut_off_or_added_is_refused() -> None:
    for data in (PRODUCE_9, metadata(b"orders")):
        for length in range(len(data)):
            with pytest.raises(MalformedError):
                skim(data[:length])
            with pytest.raises(MalformedError):
                skim(pack(">i", max(length - 4, 0)) + data[4:length])
        assert refused(pack(">i", len(data) - 3) + data[4:] + b"\0") == "trailing-bytes"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (framed(METADATA, 1, b"\xff\xff\xff\xfe"), "negative-length"),
        (framed(METADATA, 0, b"\xff\xff\xff\xff"), "null-not-allowed"),
        (framed(METADATA, 1, pack(">ih", 1, -1)), "null-not-allowed"),
        (framed(METADATA, 1, pack(">ih", 1, -2)), "negative-length"),
        (framed(METADATA, 1, pack(">ih", 1, 9) + b"abc"), "beyond-frame"),
        (framed(METADATA, 1, pack(">i", 2) + string(b"a")), "count-beyond-frame"),
        (framed(METADATA, 1, b"\x7f\xff\xff\xff"), "beyond-frame"),
        (metadata(b"\xff"), "bad-utf8"),
        (metadata(b"\xed\xa0\x80"), "bad-utf8"),
        (metadata(b"\xc0\x80"), "bad-utf8"),
        (framed(METADATA, 1, b"\0\0\0\0", b"\xff"), "bad-client-id"),
        (flexible(METADATA, 12, b"\x80\x80\x80\x80\x80\0\1\0\0"), "bad-varint"),
        (flexible(METADATA, 12, b"\x80\x80\x80\x80\x10\1\0\0"), "bad-varint"),
        (flexible(METADATA, 12, b"\xff\xff\xff\xff\x0f\1\0\0"), "bad-varint"),
        (flexible(METADATA, 12, b"\2" + ID + compact(b"a") + b"\0\1\0\0"), "topic-name-and-id"),
        (flexible(METADATA, 12, b"\0\1\0\2\7\0\7\0"), "tags-out-of-order"),
        (flexible(METADATA, 12, b"\0\1\0\2\7\0\6\0"), "tags-out-of-order"),
        (flexible(METADATA, 12, b"\0\1\0\1\7\5abcd"), "beyond-frame"),
        (flexible(75, 0, b"\1\0\0\0\1\2\1\0"), "bad-presence"),
        (pack(">i", 9) + bytes(9), "frame-too-short"),
        (b"\xff\xff\xff\xff" + bytes(20), "frame-too-short"),
        (b"GET / HTTP/1.1\r\n\r\n", "http-not-kafka"),
        (b"\x7f\xff\xff\xff" + bytes(20), "frame-too-large"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "tls-not-opened"),
    ],
)  # fmt: skip
def test_what_is_not_as_laid_out_is_refused_with_its_reason(data: bytes, reason: str) -> None:
    assert refused(data) == reason


def test_a_fault_is_known_as_soon_as_it_has_come() -> None:
    data = metadata(b"a", b"\xff", b"b")
    found = [look(data[:length]) for length in range(len(data) - 3)]
    assert all(isinstance(wanted, int) for wanted in found)
    with pytest.raises(MalformedError, match="bad-utf8"):
        look(data[: len(data) - 3])


def test_a_varint_may_be_longer_than_it_need_be() -> None:
    """Kafka reads it, and in the same way."""
    assert skim(flexible(METADATA, 12, b"\x80\x80\x80\x80\0\1\0\0")).all_topics


def fetch_17(hidden: bool) -> bytes:
    """A fetch of topic 1, whose tagged field may claim the bytes of topic 2 behind it."""
    head = pack(">iiib", 500, 1, 1000, 0) + pack(">ii", 0, -1)
    partition = pack(">iiqiqi", 0, -1, 0, -1, 0, 99)
    second = b"\x22" * 16 + b"\2" + partition + b"\0\0"
    behind = b"\0" + second + b"\1\1\0"
    length = 16 + len(behind) - 3 if hidden else 16
    return flexible(FETCH, 17, head + b"\3" + ID + b"\2" + partition + b"\1\0" + bytes([length]) + b"\x77" * 16 + behind)


def test_a_tagged_field_whose_length_lies_hides_no_topic() -> None:
    """Kafka reads a field that it knows to its end, wherever the length says that it is."""
    for hidden in (False, True):
        message = FetchRequest.decode(fetch_17(hidden), version=17, header=True, framed=True)
        assert [topic.topic_id.bytes[0] for topic in message.topics] == [1, 0x22], "so would a broker"
    assert [topic.topic_id for topic in skim(fetch_17(False)).topics] == [ID, b"\x22" * 16]
    assert refused(fetch_17(True)) == "bad-tagged-field"


# Unknown


def test_unknown_apis_and_versions_are_told_apart_from_malformed_ones() -> None:
    for api_key, version, api in ((58, 0, None), (METADATA, 99, "Metadata"), (-1, 0, None), (METADATA, -1, "Metadata")):
        data = framed(api_key, version, b"whatever")
        for read in (skim, look):
            with pytest.raises(UnsupportedError) as caught:
                read(data)
            error = caught.value
            assert (error.api_key, error.version, error.correlation_id, error.client_id) == (api_key, version, 7, "me")
            assert (error.api, error.is_api_versions, error.size) == (api, False, len(data))


def test_a_newer_client_that_asks_for_versions_is_told_apart_whatever_its_body() -> None:
    data = framed(API_VERSIONS, 77, b"\xff\xff\xff")
    with pytest.raises(UnsupportedError) as caught:
        look(data[:16])
    assert caught.value.is_api_versions


def test_of_an_unknown_api_the_client_id_need_not_be_readable() -> None:
    for data in (framed(999, 0, b"", b"\xff"), pack(">ihhih", 10, 999, 0, 7, 300), pack(">ihhih", 10, 7, 0, 7, 0)):
        with pytest.raises(UnsupportedError) as caught:
            skim(data)
        assert caught.value.client_id is None


# Bounds


def test_a_frame_is_refused_by_its_size_before_any_of_it_has_come() -> None:
    assert look(pack(">i", FRAME_MAX)) == 8
    with pytest.raises(MalformedError) as caught:
        look(pack(">i", FRAME_MAX + 1))
    assert caught.value.limit == "FRAME_MAX"


def test_a_request_names_no_more_resources_than_the_limit() -> None:
    assert len(skim(metadata(*[b"t"] * MAX_RESOURCES)).topics) == MAX_RESOURCES
    with pytest.raises(MalformedError) as caught:
        skim(metadata(*[b"t"] * (MAX_RESOURCES + 1)))
    assert caught.value.limit == "MAX_RESOURCES"
    groups = framed(15, 0, pack(">i", MAX_RESOURCES + 1) + string(b"g") * (MAX_RESOURCES + 1))
    assert refused(groups) == "too-many-resources"


def test_names_of_a_request_are_no_longer_than_the_limits() -> None:
    long = b"\x80\x80\x02" + bytes(0x7FFF)  # a varint: 0x8000 less one
    assert len(skim(flexible(METADATA, 9, b"\2" + long + b"\0\0\0\0\0")).topics[0].name or "") == 0x7FFF
    assert refused(flexible(METADATA, 9, b"\2\x81\x80\x02" + bytes(0x8000) + b"\0\0\0\0\0")) == "string-too-long"
    names = MAX_NAME_BYTES // 2048
    assert len(skim(metadata(*[b"t" * 2048] * names)).topics) == names
    with pytest.raises(MalformedError) as caught:
        skim(metadata(*[b"t" * 2048] * (names + 1)))
    assert caught.value.limit == "MAX_NAME_BYTES"


def test_a_request_has_no_more_elements_than_the_limit() -> None:
    def produce(partitions: int) -> bytes:
        return framed(PRODUCE, 0, pack(">hiih", 1, 1, 1, 1) + b"t" + pack(">i", partitions) + bytes(8) * partitions)

    assert skim(produce(MAX_ELEMENTS - 1)).topics[0].name == "t"
    with pytest.raises(MalformedError) as caught:
        skim(produce(MAX_ELEMENTS))
    assert caught.value.limit == "MAX_ELEMENTS"
    tags = b"\x80\x80\x10" + bytes(3 * 2**18)
    assert refused(framed(METADATA, 12, b"", tags=tags)) == "too-many-elements"


def test_elements_that_are_not_as_usual_are_walked_up_to_a_limit() -> None:
    """Of fields of elements with long strings, or with tagged fields: a walk takes some 10 ms at most."""

    def commit(partitions: int, note: bytes) -> bytes:
        one = bytes(12) + string(note)
        return framed(8, 0, string(b"g") + pack(">i", 1) + string(b"t") + pack(">i", partitions) + one * partitions)

    assert skim(commit(90_000, b"a note")).topics[0].name == "t"
    with pytest.raises(MalformedError) as caught:
        skim(commit(MAX_STEPS // 2 + 100, b"a note" * 50))
    assert caught.value.limit == "MAX_STEPS"


@pytest.mark.parametrize("count", [1, 2, 32, 33, 34, 65, 100])
@pytest.mark.parametrize("unusual", [-1, 0, 1, 31, 32, 33, 64])
def test_what_is_passed_over_many_at_a_time_is_laid_out_as_what_is_walked(count: int, unusual: int) -> None:
    """One long string, or one tagged field, anywhere among usual elements."""
    notes = [b"n" * 400 if i == unusual else b"n" * (i % 5) for i in range(count)]
    body = string(b"g") + pack(">i", 2)
    for name in (b"t", b"u"):
        body += string(name) + pack(">i", count) + b"".join(bytes(12) + string(note) for note in notes)
    assert [topic.name for topic in skim(framed(8, 0, body)).topics] == ["t", "u"]
    fetch = [(partition, b"\1\7\0" if partition == unusual else b"\0") for partition in range(count)]
    partitions = b"".join(pack(">i", partition) + bytes(28) + tags for partition, tags in fetch)
    body = bytes(17) + pack(">ii", 0, -1) + b"\2\2t" + bytes([count + 1]) + partitions + b"\0" + b"\1" + b"\1" + b"\0"
    found = skim(framed(1, 12, body, tags=b"\0"))
    assert found.topics[0].partitions == tuple(range(count))
    data = framed(1, 12, body, tags=b"\0")
    assert all(isinstance(look(data[:n]), int) for n in range(found.determined))


def test_asking_is_linear_however_the_bytes_arrive() -> None:
    """Byte by byte, as often as ``look`` wants to be asked: it sees at most four times the bytes of the frame."""
    data = metadata(*[b"a topic"] * 3_900)
    seen, wanted = 0, 0
    for length in range(len(data) + 1):
        if length >= wanted:
            seen += length
            found = look(data[:length])
            if isinstance(found, Request):
                break
            assert length < found <= len(data)
            wanted = found
    assert length == len(data)
    assert seen < 4 * len(data)


def test_bytes_of_the_next_frame_are_not_looked_at() -> None:
    assert look(PRODUCE_9 + b"\xff" * 100) == look(PRODUCE_9)
    assert refused(PRODUCE_9 + PRODUCE_9) == "not-one-frame"


def test_the_shortest_request_is_as_long_as_the_least_header() -> None:
    data = framed(API_VERSIONS, 0, b"", None)
    assert len(data) == frames.HEADER_LEAST
    assert skim(data).api == "ApiVersions"

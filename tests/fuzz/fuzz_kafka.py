"""Coverage-guided fuzzing of the Kafka parser: python -m tests.fuzz.fuzz_kafka [CORPUS_FOLDER] (needs atheris).

A crash is an exception, a verb that breaks the contract (tests/playbook.py checks each one), a result that depends on how the
bytes were split, or a denied topic that kafka-python or kio reads in what the broker got.

Without a corpus folder it begins with a request and a reply of every API and version, which ``seeds`` writes. A byte string
says three things before its frames: how the bytes are split, whether the size fields are mended (else hardly any
mutation would get past them), and how long the client's part is.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]

with atheris.instrument_imports():
    from parsers.kafka import connection, denials, frame, metadata, replies, request, sasl, sessions, splits, wire  # noqa: F401

from parsers.contract import ApiCall, Direction
from policies.decide import Decision
from tests.playbook import Playbook, Verdict
from tests.property.kafka_conversations import ALLOWED, ALLOWED_ID, DENIED_ID, Asker, facts, one_topic, split_frames
from tests.property.kafka_reply_words import ReplyWriter
from tests.property.kafka_words import VERSIONS

HEAD = 4  # bytes: split, mend, length of the client's part
MEND = 1
MIN_FRAME = 8  # bytes
SEQUENCES = 200  # seeds of several requests
_METADATA = b"\0\x03"
PAIR = one_topic()
# Those of which the parser remembers something.
SEQUENCED = [(key, version) for key, version in VERSIONS if key in (0, 1, 3, 17, 18, 36)]


def feed(step: Callable[[bytes], Playbook], data: bytes, piece: int) -> None:
    for at in range(0, len(data), piece):
        if step(data[at : at + piece]).fail is not None:
            return


def decide(call: ApiCall) -> Verdict:
    decision: Decision = PAIR.decide(call)
    return decision  # type: ignore[return-value]


def play(client: bytes, server: bytes, piece: int) -> tuple[bytes, object]:
    """What the server got, and what came of it all; None if that may depend on how the bytes were split."""
    book = Playbook(connection.KafkaParser(), decide)
    feed(book.client, client, piece)
    # What of the requests is held, or waits for more to be worth a look, goes out between replies or never: then it does
    # matter where the bytes are split.
    comparable = book.fail is not None or not book.unsettled(Direction.REQUEST)
    if book.fail is None:
        feed(book.server, server, piece)
    if book.fail is None:
        book.client(end=True)
    if book.fail is None:
        book.server(end=True)
    fail = book.fail and (book.fail.reason, book.fail.call)
    outcome = book.to_server, book.to_client, book.replies, book.done, fail
    return book.to_server, outcome if comparable else None


def mended(frames: bytes) -> bytes:
    """The frames, the size field of the last one true."""
    at = 0
    while at + 4 <= len(frames):
        end = at + 4 + int.from_bytes(frames[at : at + 4], "big")
        if not at + MIN_FRAME <= end <= len(frames):
            return frames[:at] + (len(frames) - at - 4).to_bytes(4, "big") + frames[at + 4 :]
        at = end
    return frames


def test_one_input(data: bytes) -> None:
    if len(data) < HEAD:
        return
    piece, mend, border = data[0] % 16 + 1, data[1] & MEND, HEAD + int.from_bytes(data[2:HEAD], "big")
    client, server = data[HEAD:border], data[border:]
    if mend:
        client, server = mended(client), mended(server)
    to_server, outcome = play(client, server, piece)
    at_once = play(client, server, len(data))[1]
    assert outcome is None or at_once is None or outcome == at_once
    learned = DENIED_ID.bytes in server or ALLOWED_ID.bytes in server  # the broker may lie about which name has an id
    for passed in split_frames(to_server):
        for read in facts(passed):
            names = set(read.topics) - {ALLOWED}
            by_id = {name for name in names if len(name) == 32}
            ours = passed[4:6] == _METADATA and passed not in client
            assert names == by_id, f"{names} reached the broker"
            assert not by_id or learned or ours
            assert not read.all_topics or passed[4:6] == _METADATA


def seeds(folder: Path) -> None:
    """A request and its reply for every API and version, written by kafka-python and kio, and some sequences of them."""

    def pair(key: int, version: int, seed: str) -> tuple[bytes, bytes]:
        asked = Asker(seed).frame(key, version)
        told = bytearray(ReplyWriter(seed).reply(key, version))
        told[4:8] = asked[8:12]
        return asked, bytes(told)

    def write(name: str, *pairs: tuple[bytes, bytes]) -> None:
        client, server = (b"".join(parts) for parts in zip(*pairs, strict=True))
        if len(client) < 2**16:
            (folder / name).write_bytes(bytes((200, MEND)) + len(client).to_bytes(2, "big") + client + server)

    for key, version in VERSIONS:
        write(f"{key}-{version}", pair(key, version, f"{key} {version}"))
    for number in range(SEQUENCES):
        asker = Asker(f"sequence {number}")
        write(
            f"sequence-{number}",
            *(
                pair(*asker.random.choice(SEQUENCED), f"sequence {number} {place}")
                for place in range(asker.random.randrange(2, 5))
            ),
        )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        arguments = sys.argv
        if all(argument.startswith("-") for argument in sys.argv[1:]):
            seeds(Path(made))
            arguments = [*sys.argv, made]
        atheris.Setup(arguments, test_one_input)
        atheris.Fuzz()

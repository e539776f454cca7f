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
    from parsers.kafka import connection, denials, frame, replies, request, sasl, sessions, splits, wire  # noqa: F401

from parsers.contract import ApiCall, Direction
from policies.decide import Decision
from tests.playbook import Playbook, Verdict
from tests.property.kafka_conversations import ALLOWED, ALLOWED_ID, DENIED_ID, Asker, facts, one_topic, split_frames
from tests.property.kafka_reply_words import ReplyWriter
from tests.property.kafka_words import VERSIONS

HEAD = 4  # bytes: split, mend, length of the client's part
MEND = 1
_METADATA = b"\0\x03"
PAIR = one_topic()


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
    comparable = not book.unsettled(Direction.REQUEST)
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
    """One frame of all of them, its size field true."""
    return (len(frames) - 4).to_bytes(4, "big") + frames[4:] if len(frames) >= 4 else frames


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
    """A request and its reply for every API and version, written by kafka-python and kio."""
    for key, version in VERSIONS:
        asker, answerer = Asker(f"{key} {version}"), ReplyWriter(f"{key} {version}")
        asked = asker.frame(key, version)
        told = bytearray(answerer.reply(key, version))
        told[4:8] = asked[8:12]
        head = bytes((200, MEND)) + len(asked).to_bytes(2, "big")
        (folder / f"{key}-{version}").write_bytes(head + asked + told)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        arguments = sys.argv
        if all(argument.startswith("-") for argument in sys.argv[1:]):
            seeds(Path(made))
            arguments = [*sys.argv, made]
        atheris.Setup(arguments, test_one_input)
        atheris.Fuzz()

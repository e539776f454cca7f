"""Coverage-guided fuzzing of the HTTP/1.1 parser: python -m tests.fuzz.fuzz_http1 [CORPUS_FOLDER] (needs atheris).

A crash is an exception, a verb that breaks the contract (tests/playbook.py checks each one), or a result that depends on
how the bytes were split.
"""

import sys
from collections.abc import Callable

import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]

with atheris.instrument_imports():
    from parsers import http1, http1_chunked, http1_head, http1_replies, target  # noqa: F401 - instrumented here, used by the first

from parsers.contract import Direction
from tests.playbook import Playbook


def feed(step: Callable[[bytes], Playbook], data: bytes, piece: int) -> None:
    for at in range(0, len(data), piece):
        if step(data[at : at + piece]).fail is not None:
            return


def play(client: bytes, server: bytes, piece: int) -> object:
    book = Playbook(http1.Http1Parser())
    feed(book.client, client, piece)
    # Requests that are held go out between replies, so then it does matter where the server's bytes are split.
    comparable = not book.unsettled(Direction.REQUEST)
    if book.fail is None:
        feed(book.server, server, piece)
    book.client(end=True)
    book.server(end=True)
    fail = book.fail and (book.fail.reason, book.fail.call)
    return comparable and (book.to_server, book.to_client, book.replies, book.done, book.left, fail)


def test_one_input(data: bytes) -> None:
    """The first byte says how to split, the second where the server's bytes begin."""
    if len(data) < 2:
        return
    piece, border = data[0] % 16 + 1, data[1]
    client, server = data[2 : 2 + border], data[2 + border :]
    assert play(client, server, piece) == play(client, server, len(data))


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()

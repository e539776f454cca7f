"""A WSGI application, for gunicorn. See calls.py."""

from collections.abc import Callable, Iterable
from pathlib import Path
from time import sleep
from typing import Any

from tests.programs.python.bodies import PIECE, Told, pieces


def app(content: str) -> Callable[..., Iterable[bytes]]:
    def answer(environment: dict[str, Any], start: Callable[..., object]) -> Iterable[bytes]:
        path = environment["PATH_INFO"]
        if path == "/early":
            return say(start, "413 Content Too Large", b"no")
        if environment["REQUEST_METHOD"] == "POST":
            told = Told(path)
            sleep(told.pause())
            while data := environment["wsgi.input"].read(PIECE):
                told.add(data)
                sleep(told.pause())
            return say(start, "200 OK", told.text())
        _, kind, size = path.split("/")
        file = Path(content) / size
        start("200 OK", [("Content-Length", str(file.stat().st_size))] if kind == "down" else [])
        return pieces(file)

    return answer


def say(start: Callable[..., object], status: str, text: bytes) -> list[bytes]:
    start(status, [("Content-Length", str(len(text)))])
    return [text]

"""An ASGI application in uvicorn. See calls.py: asgi.py PORT CONTENT."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvicorn

from tests.programs.python.bodies import Told, pieces

CONTENT = Path(sys.argv[2])
Send = Callable[[dict[str, Any]], Awaitable[None]]


async def app(scope: dict[str, Any], receive: Callable[[], Awaitable[dict[str, Any]]], send: Send) -> None:
    if scope["type"] != "http":
        return
    path = scope["path"]
    if path == "/early":
        await say(send, 413, b"no")
    elif scope["method"] == "POST":
        told = Told(path)
        await asyncio.sleep(told.pause())
        more = True
        while more:
            message = await receive()
            told.add(message.get("body", b""))
            await asyncio.sleep(told.pause())
            more = message.get("more_body", False)
        await say(send, 200, told.text())
    else:
        _, kind, size = path.split("/")
        file = CONTENT / size
        length = [(b"content-length", size.encode())] if kind == "down" else []
        await send({"type": "http.response.start", "status": 200, "headers": length})
        for piece in pieces(file):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def say(send: Send, status: int, text: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"%d" % len(text))]})
    await send({"type": "http.response.body", "body": text})


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error", timeout_keep_alive=60)

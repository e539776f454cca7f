"""aiohttp's server. See calls.py: aio.py PORT CONTENT."""

import asyncio
import sys
from pathlib import Path

from aiohttp import web

from tests.programs.python.bodies import Told, pieces

CONTENT = Path(sys.argv[2])


async def answer(request: web.Request) -> web.StreamResponse:
    if request.path == "/early":
        return web.Response(status=413, text="no")
    if request.method == "POST":
        told = Told(request.path)
        await asyncio.sleep(told.pause())
        async for data in request.content.iter_any():
            told.add(data)
            await asyncio.sleep(told.pause())
        return web.Response(body=told.text())
    _, kind, size = request.path.split("/")
    if kind == "down":
        return web.FileResponse(CONTENT / size)  # sendfile(2)
    reply = web.StreamResponse()
    reply.enable_chunked_encoding()
    await reply.prepare(request)
    for piece in pieces(CONTENT / size):
        await reply.write(piece)
    await reply.write_eof()
    return reply


if __name__ == "__main__":
    app = web.Application(client_max_size=0)
    app.router.add_route("*", "/{path:.*}", answer)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None, keepalive_timeout=60)

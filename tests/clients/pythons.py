"""Makes three calls with a Python HTTP library and prints what came of them: pythons.py LIBRARY HOST:PORT."""

import asyncio
import http.client
import json
import sys
from typing import Any

CALLS = (("GET", "/ok", None), ("GET", "/denied", None), ("POST", "/submit", b"a body"))
Answers = tuple[list[tuple[int, bytes]], Any]  # status and body of each call, and what getpeername says


def standard_library(place: str) -> Answers:
    connection = http.client.HTTPConnection(place)
    answers = []
    for method, path, body in CALLS:
        connection.request(method, path, body)
        reply = connection.getresponse()
        answers.append((reply.status, reply.read()))
    return answers, connection.sock.getpeername()


def with_requests(place: str) -> Answers:
    import requests

    with requests.Session() as session:
        replies = [session.request(method, f"http://{place}{path}", data=body) for method, path, body in CALLS]
    return [(reply.status_code, reply.content) for reply in replies], None


def with_urllib3(place: str) -> Answers:
    import urllib3

    pool = urllib3.PoolManager(retries=False)
    replies = [pool.request(method, f"http://{place}{path}", body=body) for method, path, body in CALLS]
    return [(reply.status, reply.data) for reply in replies], None


def with_aiohttp(place: str) -> Answers:
    async def run() -> Answers:
        import aiohttp

        answers, peer = [], None
        async with aiohttp.ClientSession() as session:
            for method, path, body in CALLS:
                async with session.request(method, f"http://{place}{path}", data=body) as reply:
                    if reply.connection is not None and reply.connection.transport is not None:
                        peer = reply.connection.transport.get_extra_info("peername")
                    answers.append((reply.status, await reply.read()))
        return answers, peer

    return asyncio.run(run())


LIBRARIES = {"http.client": standard_library, "requests": with_requests, "urllib3": with_urllib3, "aiohttp": with_aiohttp}

((allowed, _), (denied, _), (posted, echo)), peer = LIBRARIES[sys.argv[1]](sys.argv[2])
shown = f"{peer[0]} {peer[1]}" if peer else None
print(json.dumps({"allowed": allowed, "denied": denied, "posted": posted, "echo": echo.decode(), "peer": shown}))

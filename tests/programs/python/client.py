"""The HTTP clients of Python, told what to do as clients.py describes: client.py LIBRARY BASE CONTENT."""

import asyncio
import hashlib
import io
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

LIBRARY, BASE, CONTENT = sys.argv[1], sys.argv[2], Path(sys.argv[3])
CHUNK = 65536


def pieces(path: Path) -> Iterator[bytes]:
    """A body without a length: libraries send it chunked."""
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            yield piece


class Requests:
    def new(self) -> None:
        import requests

        self._session = requests.Session()
        self._session.trust_env = False

    def call(self, method: str, url: str, body: Path | None, chunked: bool) -> tuple[int, bytes]:
        data = None if body is None else pieces(body) if chunked else body.read_bytes()
        reply = self._session.request(method, url, data=data, timeout=60)
        return reply.status_code, reply.content


class Httpx:
    def new(self) -> None:
        import httpx

        self._client = httpx.Client(trust_env=False, timeout=60)

    def call(self, method: str, url: str, body: Path | None, chunked: bool) -> tuple[int, bytes]:
        data = None if body is None else pieces(body) if chunked else body.read_bytes()
        reply = self._client.request(method, url, content=data)
        return reply.status_code, reply.content


class Multi:
    """libcurl's multi interface, which never blocks."""

    def new(self) -> None:
        import pycurl

        self._multi = pycurl.CurlMulti()

    def call(self, method: str, url: str, body: Path | None, chunked: bool) -> tuple[int, bytes]:
        import pycurl

        got, one = io.BytesIO(), pycurl.Curl()
        one.setopt(pycurl.URL, url)
        one.setopt(pycurl.PROXY, "")
        one.setopt(pycurl.WRITEDATA, got)
        one.setopt(pycurl.TIMEOUT, 60)
        file = body.open("rb") if body else None
        if file and body:
            one.setopt(pycurl.POST, 1)
            one.setopt(pycurl.READDATA, file)
            one.setopt(pycurl.HTTPHEADER, ["Transfer-Encoding: chunked"] if chunked else [])
            if not chunked:
                one.setopt(pycurl.POSTFIELDSIZE_LARGE, body.stat().st_size)
        self._multi.add_handle(one)
        while self._multi.perform()[1]:
            self._multi.select(1.0)
        _, _, failed = self._multi.info_read()
        self._multi.remove_handle(one)
        if file:
            file.close()
        if failed:
            raise OSError(failed[0][2])
        return one.getinfo(pycurl.RESPONSE_CODE), got.getvalue()


class Aiohttp:
    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._session = None

    def new(self) -> None:
        self._loop.run_until_complete(self._renew())

    async def _renew(self) -> None:
        import aiohttp

        if self._session is not None:
            await self._session.close()
        self._session = aiohttp.ClientSession()

    def call(self, method: str, url: str, body: Path | None, chunked: bool) -> tuple[int, bytes]:
        data = None if body is None else self._chunks(body) if chunked else body.read_bytes()
        return self._loop.run_until_complete(self._call(method, url, data))

    async def _chunks(self, body: Path) -> AsyncIterator[bytes]:
        for piece in pieces(body):
            yield piece

    async def _call(self, method: str, url: str, data: bytes | AsyncIterator[bytes] | None) -> tuple[int, bytes]:
        async with self._session.request(method, url, data=data) as reply:
            return reply.status, await reply.read()


def main() -> None:
    client = {"requests": Requests, "httpx": Httpx, "pycurl": Multi, "aiohttp": Aiohttp}[LIBRARY]()
    for line in sys.stdin:
        words = line.split()
        if words[0] == "new":
            client.new()
            continue
        body = CONTENT / words[2] if len(words) > 2 else None
        try:
            status, data = client.call(words[0], BASE + words[1], body, words[-1] == "chunked")
        except Exception as error:
            print("error", repr(error).replace(" ", "_"), flush=True)
            client.new()
            continue
        print(status, len(data), hashlib.sha256(data).hexdigest(), flush=True)


main()

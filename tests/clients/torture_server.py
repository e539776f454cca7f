"""The server of the torture: torture_server.py SEED JOURNAL. Prints its port; every id that it has seen goes to the journal.

Ends when standard input is closed.
"""

import asyncio
import os
import random
import socket
import sys
from pathlib import Path

import uvloop

sys.path.insert(0, str(Path(__file__).parent))

from torture import CUT, EARLY, GONE, LAST, LASTING, RESETTING, SILENT, EndedError, Order, Wire, reply

chance = random.Random(int(sys.argv[1]))


async def serve(wire: Wire, journal: list[str]) -> None:
    while head := await wire.until(b"\r\n\r\n"):
        lines = head.decode("latin-1").split("\r\n")
        method, target, _ = lines[0].split(" ")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)}
        order = Order.read(fields["x-order"])
        journal.append(f"{order.name} {target}")
        wire.step, wire.pause = (1 << 18, 0.0) if chance.random() < 0.98 else (chance.choice((600, 20_000)), 0.0003)
        if order.kind == EARLY:
            await wire.send(reply(order, method, b""), order.pieces, chance)
        if "expect" in fields:
            await wire.send(b"HTTP/1.1 100 Continue\r\n\r\n", 1, chance)
        if "transfer-encoding" in fields:
            got, _ = await wire.chunked()
        else:
            got = await wire.exactly(int(fields.get("content-length", "0")))
        if order.kind == EARLY:
            if fields.get("connection") == "close":
                return
            continue
        if order.kind == RESETTING:
            wire.reset()
            return
        if order.kind == SILENT:
            return
        answer = reply(order, method, got)
        if order.kind == CUT:
            await wire.send(answer[: max(1, len(answer) // 2)], 1, chance)
            (wire.reset if chance.random() < 0.5 else wire.sock.close)()
            return
        await wire.send(answer, order.pieces, chance)
        if order.kind in (LASTING, LAST, GONE) or fields.get("connection") == "close":
            return


async def connection(wire: Wire, journal: list[str]) -> None:
    try:
        await serve(wire, journal)
    except EndedError:
        pass
    finally:
        wire.sock.close()


async def main() -> None:
    loop = asyncio.get_running_loop()
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listener.setblocking(False)
    print(listener.getsockname()[1], flush=True)
    journal: list[str] = []
    tasks = set()

    async def accept() -> None:
        while True:
            sock, _ = await loop.sock_accept(listener)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = loop.create_task(connection(Wire(loop, sock), journal))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    accepting = loop.create_task(accept())
    await loop.run_in_executor(None, os.read, 0, 1)
    accepting.cancel()
    Path(sys.argv[2]).write_text("\n".join(journal))  # noqa: ASYNC240 - all is over
    print(len(tasks), flush=True)  # connections that have not ended


uvloop.run(main())

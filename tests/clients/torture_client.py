"""The client of the torture: torture_client.py PORT SEED CALLS CONNECTIONS JOURNAL ADMIN.

ADMIN is the agent's socket, which is asked when a connection is stuck.

Makes calls of all kinds at random and checks every byte of every reply. The journal gets one line per call (`Outcome`). Exits
with 1, and says what and where, when something is not as it must be.
"""

import asyncio
import random
import socket
import sys
import time
from pathlib import Path
from typing import NamedTuple

import uvloop

sys.path.insert(0, str(Path(__file__).parent))

from torture import (
    CHATTY,
    CHUNKED,
    COUNTED,
    CUT,
    EARLY,
    EMPTY,
    ENDING,
    GONE,
    GREEDY,
    HINTED,
    LAST,
    LASTING,
    PROVABLE,
    RESETTING,
    SAME,
    SILENT,
    EndedError,
    Order,
    Wire,
    body,
    chunks,
    reply,
)
from torture_report import cookie, whereabouts

PATIENCE = 40.0  # seconds for anything that must end

KINDS = {
    COUNTED: 720, EMPTY: 80, SAME: 40, CHUNKED: 50, HINTED: 40, EARLY: 20,
    LASTING: 6, LAST: 6, GONE: 8, SILENT: 3, RESETTING: 3, CUT: 3,
}  # fmt: skip
STYLES = {"plain": 800, "percent": 30, "case": 30, "long": 30, CHATTY: 30, GREEDY: 15, "close": 10}
STEPS = {"single": 800, "burst": 120, "slow": 15, "half": 12, "reset": 12, "leave": 12, "renew": 30}
_choices = random.Random.choices


class Call(NamedTuple):
    order: Order
    letter: str  # of its path: a(llowed), d(enied), f(lipping)
    method: str
    head: bytes
    content: bytes  # of the request
    wire: bytes  # the body as it is sent
    style: str
    may: bool  # be carried by the kernel

    @property
    def ends(self) -> bool:
        return self.style in ("close", CHATTY) or self.order.kind in ENDING


class FaultError(Exception):
    """What must not be."""


class Lane:
    """One connection after the other."""

    def __init__(self, number: int, seed: int, port: int, budget: "list[int]", journal: list[str], admin: str) -> None:
        self.number, self.port, self.budget, self.journal, self.admin = number, port, budget, journal, admin
        self.chance = random.Random(f"{seed}-{number}")
        self.made = 0
        self.last = "nothing yet"
        self.fresh = True
        self.early = False  # the last reply may have come before its request was delivered

    def size(self) -> int:
        chance = self.chance
        roll = chance.random()
        if roll < 0.75:
            return chance.randrange(300)
        if roll < 0.988:
            return chance.randrange(20_000)
        if roll < 0.9993:
            return chance.randrange(300_000)
        return chance.randrange(1_000_000, 6_000_000)

    def pieces(self) -> int:
        return 1 if self.chance.random() < 0.9 else self.chance.randrange(2, 6)

    def call(self, alone: bool, last: bool) -> Call:
        chance = self.chance
        self.made += 1
        self.budget[0] -= 1
        name = f"c{self.number}n{self.made}z"
        letter = chance.choices("adf", (88, 6, 6))[0]
        method = chance.choices(("GET", "POST", "HEAD"), (55, 40, 5))[0]
        style = chance.choices(list(STYLES), STYLES.values())[0]
        kind = chance.choices(list(KINDS), KINDS.values())[0]
        if (kind == EARLY and (method != "POST" or style == CHATTY)) or (kind in (EARLY, *ENDING) and not last):
            kind = COUNTED
        if kind in (SILENT, RESETTING, CUT) and not (alone and last):  # a reset destroys what is on its way of earlier replies
            kind = COUNTED
        if (
            (style == "close" and not last)
            or (style in (CHATTY, GREEDY) and method != "POST")
            or (style == CHATTY and not alone)
        ):
            style = "plain"
        order = Order(name, kind, self.size(), self.pieces())
        content = body(name, self.size(), "request") if method == "POST" else b""
        wire = chunks(content) if style == GREEDY else content
        target = f"/{letter}/{name}" + ("?q=%20%41" if style == "percent" else "")
        fields = ["hoSt: orders" if style == "case" else "host: orders", f"x-order: {order.words()}"]
        if style == "long":
            fields.append(f"x-filler: {'long' * chance.randrange(300, 2000)}")
        if style == "close":
            fields.append("connection: close")
        if style == CHATTY:
            fields.append("expect: 100-continue")
        if style == GREEDY:
            fields.append("transfer-encoding: chunked")
        elif method == "POST":
            fields.append(f"content-length: {len(content)}")
        lines = "".join(f"{field}\r\n" for field in fields)
        head = f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode()
        carriable = kind in (*PROVABLE, GONE, EARLY) or (kind == LASTING and method == "HEAD")
        return Call(order, letter, method, head, content, wire, style, style == "plain" and letter != "d" and carriable)

    def note(self, call: Call, sure: bool, status: int, replied: int, likely: bool, since: float) -> None:
        asked = len(call.head) + len(call.wire)
        facts = (call.order.name, call.letter, int(sure), status, asked, replied, int(likely), int(call.may))
        self.journal.append(" ".join(map(str, facts)) + f" {since:.6f} {time.monotonic():.6f}")

    async def run(self) -> None:
        while self.budget[0] > 0:
            sock = socket.socket()
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(PATIENCE):
                await loop.sock_connect(sock, ("127.0.0.1", self.port))
            self.fresh = True
            wire = Wire(loop, sock)
            try:
                while self.budget[0] > 0:
                    try:
                        async with asyncio.timeout(PATIENCE):
                            if not await self.step(wire):
                                break
                    except TimeoutError:
                        raise FaultError(await self.stuck(wire)) from None
            finally:
                sock.close()

    async def stuck(self, wire: Wire) -> str:
        """Where the connection is stuck, and whether anything still comes of it."""
        told = [f"stuck in {self.last}", wire.state()]
        told.append(await asyncio.to_thread(whereabouts, cookie(wire.sock), self.admin))
        before = wire.received
        wire.step, wire.pause = 1 << 18, 0.0
        try:
            async with asyncio.timeout(PATIENCE / 2):
                while await wire.fill():
                    pass
            told.append("then the end came")
        except (TimeoutError, EndedError) as error:
            told.append(f"then {error!r}")
        told.append(f"{wire.received - before} bytes came in the end; {wire.state()}")
        return "\n".join(told)

    async def step(self, wire: Wire) -> bool:
        """Make some calls; whether the connection goes on."""
        chance = self.chance
        step = chance.choices(list(STEPS), STEPS.values())[0]
        if step in ("reset", "leave") and self.early:
            step = "single"  # a reset destroys what is on its way, and nobody could say how much of that request has come
        if step == "renew":
            return False
        alone = step == "single" or chance.random() < 0.5
        count = 1 if alone else chance.randrange(2, 8)
        half = step == "half"
        calls = [self.call(count == 1 and not half, index == count - 1) for index in range(count)]
        self.last = f"{step} {[(call.order, call.letter, call.method, call.style) for call in calls]}"
        self.early = calls[-1].order.kind == EARLY
        since = time.monotonic()
        pieces = self.pieces()
        if step in ("reset", "leave"):
            await self.abandon(wire, calls, pieces, step, since)
            return False
        wire.step, wire.pause = 1 << 18, 0.0
        if step == "slow":
            wire.step, wire.pause = chance.choice((700, 9000, 1 << 18)), chance.choice((0.0003, 0.003))
        only = calls[0]
        if only.style == CHATTY:
            return await self.chat(wire, only, since)
        data = b"".join(part for call in calls for part in (call.head, call.wire))
        likely = count == 1 and pieces == 1 and only.may and only.letter == "a" and only.order.kind in PROVABLE
        likely = likely and only.order.pieces == 1 and not self.fresh and step == "single" and len(data) < 300_000
        self.fresh = False
        if pieces == 1 and len(data) < 60_000 and not half:
            try:
                await wire.send(data, 1, chance)
            except EndedError as error:
                raise FaultError(f"the connection is lost while sending: {error}") from None
            return await self.replies(wire, calls, likely, since, half) and not self.early
        sending = asyncio.create_task(self.send(wire, data, pieces, half))
        try:
            goes_on = await self.replies(wire, calls, likely, since, half)
            if goes_on and not self.early:
                await sending
            return goes_on and not self.early  # which ends the connection where the reply overtakes its request
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def send(self, wire: Wire, data: bytes, pieces: int, half: bool) -> None:
        await wire.send(data, pieces, self.chance)
        if half:
            wire.end()

    async def abandon(self, wire: Wire, calls: list[Call], pieces: int, how: str, since: float) -> None:
        data = b"".join(part for call in calls for part in (call.head, call.wire))
        if self.chance.random() < 0.4:
            data = data[: self.chance.randrange(len(data))]
        try:
            async with asyncio.timeout(self.chance.choice((0.0005, 0.002, 0.02, 1))):
                await wire.send(data, pieces, self.chance)
        except (TimeoutError, EndedError):
            pass
        await asyncio.sleep(self.chance.choice((0, 0, 0.0003, 0.001, 0.01)))
        (wire.reset if how == "reset" else wire.sock.close)()
        for call in calls:
            self.note(call, False, 0, 0, False, since)

    async def chat(self, wire: Wire, call: Call, since: float) -> bool:
        """Expect: 100-continue."""
        self.fresh = False
        await wire.send(call.head, 1, self.chance)
        head = await wire.until(b"\r\n\r\n")
        if head.startswith(b"HTTP/1.1 100 "):
            await wire.send(call.wire, self.pieces(), self.chance)
            return await self.replies(wire, [call], False, since, False, len(head))
        wire.buffer[:0] = head
        return await self.replies(wire, [call], False, since, False)

    async def replies(self, wire: Wire, calls: list[Call], likely: bool, since: float, half: bool, before: int = 0) -> bool:
        over = half
        for at, call in enumerate(calls):
            kind = call.order.kind
            try:
                status, raw, closes = await self.reply(wire, call)
            except EndedError as error:
                if kind in (SILENT, RESETTING, CUT):
                    self.note(call, False, 0, 0, False, since)
                    return False
                raise FaultError(f"the connection ended before the reply of {call.order}: {error}") from None
            if status == 403:
                if call.letter == "a":
                    raise FaultError(f"{call.order} was denied")
                over = over or closes
            else:
                if call.letter == "d":
                    raise FaultError(f"{call.order} got {status}")
                if kind in (SILENT, RESETTING, CUT):
                    if status not in (502, 504):
                        raise FaultError(f"{call.order} got {status}")
                    self.note(call, False, 0, 0, False, since)
                    return False
                expected = reply(call.order, call.method, b"" if kind == EARLY else call.content)
                if raw != expected:
                    same = next(
                        (i for i, (a, b) in enumerate(zip(raw, expected, strict=False)) if a != b), min(len(raw), len(expected))
                    )
                    raise FaultError(
                        f"not the server's reply to {call.order}: {len(raw)} bytes of {len(expected)}, alike up to {same}: "
                        f"{raw[:200]!r} for {expected[:100]!r}"
                    )
                over = over or kind in ENDING or call.style == "close"
            self.note(call, not (status == 403 and closes), status, len(raw) + before, likely, since)
            if closes and at + 1 < len(calls):
                for rest in calls[at + 1 :]:
                    self.note(rest, False, 0, 0, False, since)
                return False
        if over:
            try:
                more = await wire.until(b"\r\n\r\n") or bytes(wire.buffer)
            except EndedError:
                more = bytes(wire.buffer)
            if more:
                raise FaultError(f"more than the replies: {more[:300]!r}")
            return False
        if wire.buffer:
            raise FaultError(f"more than the replies: {bytes(wire.buffer[:300])!r}")
        return True

    async def reply(self, wire: Wire, call: Call) -> tuple[int, bytes, bool]:
        """The final reply's status, its bytes with those of interim ones, and whether it is the last one."""
        raw = b""
        while True:
            head = await wire.until(b"\r\n\r\n")
            if not head:
                raise EndedError("end")
            raw += head
            status = int(head[9:12])
            if status >= 200:
                break
        lines = head.decode("latin-1").lower().split("\r\n")[1:]
        fields = {name: value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        closes = fields.get("connection") == "close"
        if call.method == "HEAD" or status in (204, 304):
            return status, raw, closes
        if "transfer-encoding" in fields:
            return status, raw + (await wire.chunked())[1], closes
        if "content-length" in fields:
            return status, raw + await wire.exactly(int(fields["content-length"])), closes
        while await wire.fill():
            pass
        return status, raw + wire.take(len(wire.buffer)), closes


async def main(port: int, seed: int, calls: int, connections: int, journal: Path, admin: str) -> int:
    budget, lines = [calls], []
    lanes = [Lane(number, seed, port, budget, lines, admin) for number in range(connections)]
    tasks = [asyncio.create_task(lane.run()) for lane in lanes]
    began = time.monotonic()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    faults = [(lane, fault) for lane, fault in zip(lanes, done, strict=True) if fault]
    for lane, fault in faults[:6]:
        print(f"seed {seed}, lane {lane.number}, call {lane.made}: {type(fault).__name__} {fault}\n  in {lane.last}"[:20_000])
    journal.write_text("\n".join(lines))  # noqa: ASYNC240 - all is over
    print(f"{sum(lane.made for lane in lanes)} calls in {time.monotonic() - began:.1f} s, {len(faults)} lanes with faults")
    return 1 if faults else 0


if __name__ == "__main__":
    port, seed, calls, connections = map(int, sys.argv[1:5])
    sys.exit(uvloop.run(main(port, seed, calls, connections, Path(sys.argv[5]), sys.argv[6])))

"""The audit writer: every record goes into the sink once and whole, and never in the way of the event loop.

The bargain with the relay is **no call without room for its record**. A call takes a reservation first; when there is none
left, the caller waits for one and at last denies. So a sink that is slow or full stops calls, and never loses records.

Two sides share one writer. The event loop's thread reserves and hands over records; a daemon thread writes them in
batches. They need no lock: each counter has one writer, and ``deque.append`` and ``popleft`` are atomic.

Several processes may append to one file, each through a writer of its own. Make it after ``fork``: a thread does not
survive that, and two processes that share one descriptor also share its lock.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

from proxy.audit.places import ANYWHERE, PLACE_BYTES, Place
from proxy.audit.record import AuditRecord, encode_lines, now
from proxy.audit.sink import Sink
from proxy.shares import Budget

# Bytes of memory that open calls and queued records may take, unless the operator says otherwise.
CAPACITY = 64 * 1024 * 1024
# Refusals are recorded without a reservation: a full queue must not hide them, and a flood of them must not take the
# room of calls that policy allows. Hence slots of their own.
REFUSAL_CAPACITY = 2048
# Encoding holds the GIL, and so the event loop, for about 1 us per record.
BATCH_RECORDS = 256
# How long a record waits for others to share its write. Readers are promised a record within 50 ms.
BATCH_DELAY_SECONDS = 0.02
# Between two tries of a failed write: short at first, for a reader that is merely slow; no busy loop on a full disk.
RETRY_FIRST_SECONDS = 0.01
RETRY_LONGEST_SECONDS = 1.0
# While nothing is to be written, this often somebody looks whether the file is still where it was.
LOOK_SECONDS = 1.0
# Of those of one subject that wait, so many are looked at when there is room: the first may be over its own connection's share.
WAITERS_LOOKED_AT = 4

_log = logging.getLogger(__name__)


class _Slots:
    """Room for records. ``taken`` is counted by the event loop's thread, ``freed`` by the writing thread."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.taken = 0
        self.freed = 0

    @property
    def left(self) -> int:
        return max(self.capacity - self.taken + self.freed, 0)

    def take(self, n: int) -> bool:
        if self.taken + n > self.capacity + self.freed:
            return False
        self.taken += n
        return True


class _Waiter:
    __slots__ = ("callback", "place")

    def __init__(self, place: Place, callback: Callable[[], object]) -> None:
        self.place, self.callback = place, callback


class _Lines:
    """Records that are lines already."""

    __slots__ = ("lines", "written")

    def __init__(self, lines: Sequence[str], written: Callable[[], object] | None) -> None:
        self.lines = lines
        self.written = written


_Queued = tuple[_Slots, Place, AuditRecord | _Lines | str]
# Refusals are counted one by one.
_REFUSAL = Place(1)


def _line_of(place: Place) -> str | None:
    """In whose line one waits for a place."""
    return None if place.claim is None else place.claim.share.subject


class AuditWriter:
    """Appends audit records to a file, a FIFO, or standard output (``-``).

    The constructor opens the sink and raises ``OSError`` when that fails. Its methods, but for ``close``, return at once and
    belong to the event loop's thread.
    """

    def __init__(self, path: str | os.PathLike[str], *, capacity: int = CAPACITY, refusals: int = REFUSAL_CAPACITY) -> None:
        """``capacity`` in bytes, ``refusals`` in records."""
        self._sink = Sink(os.fspath(path))
        self.budget = Budget(capacity)  # who has how much of it
        self._calls = _Slots(capacity)
        self._refusals = _Slots(refusals)
        self._queue: deque[_Queued] = deque()
        self._given_back: deque[Sequence[Place]] = deque()  # by the writing thread, not yet counted in the budget
        self._given = 0  # records handed over; counted by the event loop's thread
        self._written = 0  # records in the sink; counted by the writing thread
        self._waiters: dict[str | None, OrderedDict[_Waiter, None]] = {}  # by subject
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = threading.Event()
        self._reopen_asked = threading.Event()
        self._closing = threading.Event()
        self._abandoned = threading.Event()
        self.moved = 0  # how often the file was found renamed, replaced or removed by others
        self._write_error: str | None = None
        self._reopen_error: str | None = None
        self._thread = threading.Thread(target=self._run, name="sluice-audit", daemon=True)
        self._thread.start()

    def reserve(self, place: Place = ANYWHERE) -> bool:
        """Take room for one call's record, before the call is let through. False: none is left for this connection, or others
        of its subject wait for it."""
        if self._waiters and _line_of(place) in self._waiters:
            return False
        return self._take(place)

    def _take(self, place: Place) -> bool:
        size, claim = place
        if self._given_back:
            self.reclaim()
        calls = self._calls
        if calls.taken + size > calls.capacity + calls.freed or self._closing.is_set():
            return False
        if claim is not None and not self.budget.take(claim, size):
            return False
        calls.taken += size
        return True

    @property
    def room(self) -> int:
        """Of how many calls records can be handed over as lines."""
        short = self._calls.left * 8 < self._calls.capacity
        if self._closing.is_set() or (self._waiters and short):  # those who wait come first
            return 0
        return self._calls.left // PLACE_BYTES

    def cancel(self, place: Place = ANYWHERE) -> None:
        """Give a reservation back unused."""
        self._calls.taken -= place.size
        if place.claim is not None:
            self.budget.charge(place.claim, -place.size)
        self._admit()

    def write_lines(self, lines: Sequence[str], written: Callable[[], object] | None = None) -> None:
        """Hand over the lines of records, in ASCII, of calls that are over: without reservations, and whether there is room
        or not. Who comes with more than there is ``room`` for must have a bound of his own.

        When they, and all before them, are in the sink, ``written`` is called, by the writing thread.
        """
        if not lines and written is None:
            return
        size = len(lines) * PLACE_BYTES
        self._calls.taken += size
        self._hand_over(self._calls, Place(size), _Lines(lines, written), len(lines))

    def write_line(self, line: str, reserved: Place) -> None:
        """Hand over a record that is a line already, in ASCII. It uses its reservation up, as with `write`."""
        self._hand_over(self._calls, reserved, line, 1)

    def write(self, record: AuditRecord, reserved: Place | None = ANYWHERE) -> bool:
        """Hand over a finished record. With a reservation, which it uses up, this always succeeds before ``close``.

        Without one (None) are refusals. False: their slots are full and the record was **not** taken. Stop reading from that
        client, and try again later.
        """
        if self._closing.is_set():
            return False
        if reserved is not None:
            self._hand_over(self._calls, reserved, record, 1)
        elif self._refusals.take(1):
            self._hand_over(self._refusals, _REFUSAL, record, 1)
        else:
            return False
        return True

    def _hand_over(self, slots: _Slots, place: Place, what: "AuditRecord | _Lines | str", count: int) -> None:
        self._given += count
        self._queue.append((slots, place, what))
        if not self._wake.is_set():
            self._wake.set()

    def on_room(self, callback: Callable[[], object], place: Place = ANYWHERE) -> object:
        """Wait in line for a reservation: ``callback()`` runs once, on the running loop, and **owns one**.

        Every subject has a line of its own. Returns a ticket for ``forget``.
        """
        self._loop = asyncio.get_running_loop()
        waiter = _Waiter(place, callback)
        self._waiters.setdefault(_line_of(place), OrderedDict())[waiter] = None
        # Room may have come between a failed ``reserve`` and now, when the writing thread saw nobody waiting.
        self._loop.call_soon(self._admit)
        return waiter

    def forget(self, ticket: object) -> bool:
        """Leave the line of ``on_room``. False: the callback has run, and the reservation is its owner's to give back."""
        assert isinstance(ticket, _Waiter)
        subject = _line_of(ticket.place)
        line = self._waiters.get(subject)
        if line is None or ticket not in line:
            return False
        del line[ticket]
        if not line:
            del self._waiters[subject]
        return True

    def reopen(self) -> None:
        """Open the path anew after a rotation. Records that are not written yet go into the new file.

        When that fails the old file stays in use, ``last_error`` says why, and it is tried again with the next batch.
        """
        self._reopen_asked.set()
        self._wake.set()

    def close(self, timeout: float) -> bool:
        """Write what is queued, sync and close; blocks for at most ``timeout`` seconds. End the calls first.

        False: ``depth`` records could not be written in that time.
        """
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout)
        self._abandoned.set()
        return self.depth == 0

    @property
    def depth(self) -> int:
        """Records handed over that are not in the sink yet."""
        return self._given - self._written

    @property
    def last_error(self) -> str | None:
        """Why the sink does not work at the moment; None while it does."""
        return self._write_error or self._reopen_error

    @property
    def healthy(self) -> bool:
        """The sink works, and there is room for the records of further calls and refusals."""
        room = self._calls.left >= PLACE_BYTES and self._refusals.left > 0
        return self.last_error is None and self._thread.is_alive() and room

    def _admit(self) -> None:
        """Give room to those who wait, subject by subject."""
        if self._loop is None or not self._waiters:
            return
        for subject, line in list(self._waiters.items()):
            for waiter in list(itertools.islice(line, WAITERS_LOOKED_AT)):
                if not self._take(waiter.place):
                    line.move_to_end(waiter)
                    continue
                del line[waiter], self._waiters[subject]
                if line:
                    self._waiters[subject] = line  # behind the lines of others
                # The next has a turn of its own: an exception of this callback must not keep it waiting.
                self._loop.call_soon(self._admit)
                waiter.callback()
                return

    def reclaim(self) -> None:
        """Count what the writing thread has given back."""
        while self._given_back:
            for size, claim in self._given_back.popleft():
                assert claim is not None
                self.budget.charge(claim, -size)

    # From here on: the writing thread.

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wake.wait(LOOK_SECONDS)
            self._closing.wait(BATCH_DELAY_SECONDS)
            # Cleared before the queue is read: a record that comes later sets it again.
            self._wake.clear()
            self._drain()
        self._drain()
        self._close_sink()

    def _drain(self) -> None:
        self._reopen_if_asked()
        while self._queue and not self._abandoned.is_set():
            self._reopen_if_asked()
            batch = [self._queue.popleft() for _ in range(min(len(self._queue), BATCH_RECORDS))]
            if self._deliver(_encode([record for _, _, record in batch])):
                self._settle(batch)

    def _deliver(self, data: bytes) -> bool:
        """Try until ``data`` is in the sink. False: ``close`` gave up."""
        self._sink.put(data)
        delay = RETRY_FIRST_SECONDS
        while not self._abandoned.is_set():
            try:
                self._sink.flush()
            except OSError as error:
                self._report(error)
                self._abandoned.wait(delay)
                delay = min(delay * 2, RETRY_LONGEST_SECONDS)
                self._reopen_if_asked()
            else:
                if self._write_error is not None:
                    _log.warning("audit: writing again, no record was lost")
                    self._write_error = None
                return True
        return False

    def _report(self, error: OSError) -> None:
        if self._write_error is None:
            _log.error("audit: cannot write, calls will be held back and then denied: %s", error)
        self._write_error = str(error)

    def _settle(self, batch: "Sequence[_Queued]") -> None:
        for slots, place, what in batch:
            self._written += len(what.lines) if isinstance(what, _Lines) else 1
            slots.freed += place.size
            if isinstance(what, _Lines) and what.written:
                what.written()
        claimed = [place for _, place, _ in batch if place.claim is not None]
        if claimed:
            self._given_back.append(claimed)
        if self._waiters and self._loop is not None:
            # A loop that is closed has nobody left who waits.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._admit)

    def _reopen_if_asked(self) -> None:
        if self._sink.partial:
            return
        asked = self._reopen_asked.is_set()
        if not asked and not self._sink.moved:
            self._reopen_error = None  # it is where it was
            return
        # Cleared first: a second rotation meanwhile asks again.
        self._reopen_asked.clear()
        try:
            self._sink.reopen()
        except OSError as error:
            if self._reopen_error is None:
                _log.error("audit: cannot reopen, the old file stays in use while it has a name: %s", error)
            self._reopen_error = str(error)
            if asked:
                self._reopen_asked.set()
        else:
            self._reopen_error = None
            if not asked:
                self.moved += 1
                _log.warning("audit: the file was moved away or removed; going on in the one that the path names now")

    def _close_sink(self) -> None:
        try:
            self._sink.close()
        except OSError as error:
            _log.error("audit: the last records may not be on the disk: %s", error)


def _encode(records: Sequence[AuditRecord | _Lines | str]) -> bytes:
    """The lines of records, in their order; those that are lines already stay as they are."""
    parts: list[bytes] = []
    fresh: list[AuditRecord] = []
    for record in records:
        if isinstance(record, AuditRecord):
            fresh.append(record)
            continue
        if fresh:
            parts.append(_encode_fresh(fresh))
            fresh = []
        parts.append((record if isinstance(record, str) else "".join(record.lines)).encode("ascii"))
    return b"".join((*parts, _encode_fresh(fresh)))


def _encode_fresh(records: Sequence[AuditRecord]) -> bytes:
    try:
        return encode_lines(records)
    except Exception:
        # One record of a wrong shape is a fault of ours. It must cost no other its line, and still leave one.
        return b"".join(_encode_alone(record) for record in records)


def _encode_alone(record: AuditRecord) -> bytes:
    try:
        return encode_lines([record])
    except Exception:
        _log.exception("audit: record %s cannot be encoded", record.id)
        stand_in = AuditRecord(
            time=now(), id=str(record.id), node=str(record.node), verdict=str(record.verdict), reason="record-unencodable"
        )
        return encode_lines([stand_in])

"""The reading end of a ring buffer, with the kernel at the other: a program of a few instructions writes what it is given."""

import ctypes
import mmap
import os
import struct
from collections.abc import Iterator

import pytest

from bpf.loader import BpfError, Map, Routine, new_ring
from proxy.ring import Ring

SIZE = 4096  # bytes: a page, the least that there is
MAX_RECORD = 1024

# Instructions of BPF (linux/Documentation/bpf/standardization/instruction-set.rst), by what is done to which register.
_R0, _R1, _R2, _R3, _R6 = 0, 1, 2, 3, 6
_RINGBUF_RESERVE, _RINGBUF_SUBMIT, _RINGBUF_DISCARD = 131, 132, 133
_FULL = 1
_SYSCALL, _SLEEPABLE = 31, 1 << 4


def _op(code: int, dst: int = 0, src: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("=BBhi", code, dst | src << 4, offset, value)


def _move(dst: int, src: int) -> bytes:
    return _op(0xBF, dst, src)


def _set(dst: int, value: int) -> bytes:
    return _op(0xB7, dst, value=value)


def _map(dst: int, fd: int) -> bytes:
    return _op(0x18, dst, 1, value=fd) + _op(0)


def _call(helper: int) -> bytes:
    return _op(0x85, value=helper)


_EXIT = _op(0x95)


class _Options(ctypes.Structure):
    """struct bpf_prog_load_opts of libbpf, as far as it is needed."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("attempts", ctypes.c_int),
        ("expected_attach_type", ctypes.c_int),
        ("btf_fd", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
    )


def _load(code: bytes) -> Routine:
    lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    options = _Options(size=ctypes.sizeof(_Options), flags=_SLEEPABLE)
    fd = lib.bpf_prog_load(_SYSCALL, b"test", b"GPL", code, ctypes.c_size_t(len(code) // 8), ctypes.byref(options))
    assert fd >= 0, os.strerror(ctypes.get_errno())
    return Routine(fd)


class Producer:
    """The kernel's end."""

    def __init__(self, ring: Map) -> None:
        self._ring = ring
        self._outputs: dict[int, Routine] = {}  # by the length of what they write
        self._discard = self._reserving(40, b"", _RINGBUF_DISCARD)

    def _program(self, length: int) -> Routine:
        """Reserve so many bytes, and either fill them from the argument and submit them, or discard them."""
        words = [(0x79, 0x7B, at) for at in range(0, length - 7, 8)]
        octets = [(0x71, 0x73, at) for at in range(length & ~7, length)]
        copy = b"".join(_op(load, _R1, _R6, at) + _op(store, _R0, _R1, at) for load, store, at in words + octets)
        return self._reserving(length, copy, _RINGBUF_SUBMIT)

    def _reserving(self, length: int, fill: bytes, end: int) -> Routine:
        return _load(
            _move(_R6, _R1)
            + _map(_R1, self._ring.fd)
            + _set(_R2, length)
            + _set(_R3, 0)
            + _call(_RINGBUF_RESERVE)
            + _op(0x55, _R0, offset=2)  # go on if it is no null pointer
            + _set(_R0, _FULL)
            + _EXIT
            + fill
            + _move(_R1, _R0)
            + _set(_R2, 0)
            + _call(end)
            + _set(_R0, 0)
            + _EXIT
        )

    def write(self, number: int, length: int = 100) -> bytes | None:
        """What was written; None: the ring is full."""
        if length not in self._outputs:
            self._outputs[length] = self._program(length)
        record = struct.pack("=II", length, number).ljust(length, b"x")
        said = self._outputs[length](record.ljust(MAX_RECORD, b"\0"))
        assert said in (0, _FULL)
        return None if said else record

    def discard(self) -> None:
        assert self._discard(b"\0" * 8) == 0


@pytest.fixture
def made() -> Map:
    return new_ring("test", SIZE)


@pytest.fixture
def ring(made: Map) -> Iterator[Ring]:
    ring = Ring(made.fd, SIZE)
    yield ring
    ring.close()


@pytest.fixture
def producer(made: Map) -> Producer:
    return Producer(made)


def take(ring: Ring, most: int = 1) -> list[bytes]:
    """Records, at most so many; their room is given back."""
    records = ring.take(most)
    ring.give_back(ring.at)
    return records


def test_an_empty_ring_has_nothing(ring: Ring, producer: Producer) -> None:
    assert not ring.waiting
    assert take(ring, 9) == []
    producer.write(1)
    assert ring.waiting


def test_records_come_whole_and_in_order(ring: Ring, producer: Producer) -> None:
    written = [producer.write(number, length) for number, length in enumerate((8, 9, 15, 16, 17, 1000, 1024))]
    assert take(ring, 99) == written
    assert not ring.waiting


def test_no_more_are_taken_than_were_asked_for_and_the_others_keep_their_places(ring: Ring, producer: Producer) -> None:
    written = [producer.write(number) for number in range(5)]
    assert take(ring, 0) == []
    assert take(ring, 2) == written[:2]
    assert take(ring, 9) == written[2:]


def test_records_that_wrap_around_the_end_are_whole(ring: Ring, producer: Producer) -> None:
    for number in range(500):
        written = [producer.write(number, 700 + number % 300), producer.write(number, 30)]
        assert take(ring, 2) == written


def test_a_full_ring_takes_no_more_and_loses_nothing(ring: Ring, producer: Producer) -> None:
    written = []
    while (record := producer.write(len(written), 500)) is not None:
        written.append(record)
    assert len(written) == (SIZE - 1) // 512  # the kernel never fills the last byte
    assert take(ring) == [written[0]]
    again = producer.write(99, 500)
    assert again is not None
    assert producer.write(100, 500) is None
    assert take(ring, 99) == [*written[1:], again]
    assert not ring.waiting


def test_discarded_records_are_passed_over_and_give_their_room_back(ring: Ring, producer: Producer) -> None:
    for number in range(300):
        producer.discard()
        written = producer.write(number)
        producer.discard()
        assert take(ring) == [written]
        assert take(ring) == []
        assert not ring.waiting


def test_another_reader_begins_where_the_last_one_stopped(made: Map, ring: Ring, producer: Producer) -> None:
    producer.write(1)
    second = producer.write(2)
    take(ring)
    other = Ring(made.fd, SIZE)
    assert take(other) == [second]
    other.close()


def test_room_that_was_given_back_stays_given_back(made: Map, ring: Ring, producer: Producer) -> None:
    """At any moment: a program that found an older position, or none, would take the ring for full."""
    reader = os.fork()
    if not reader:
        try:
            for _ in range(1000):
                for number in range(200):
                    producer.write(number, 8)
                while take(ring, 1):  # one by one: the moment is short
                    pass
        finally:
            os._exit(0)
    with mmap.mmap(made.fd, mmap.PAGESIZE) as page, memoryview(page).cast("Q") as position:
        fell = last = 0
        while os.waitpid(reader, os.WNOHANG) == (0, 0):
            for _ in range(1000):
                now = position[0]
                fell += now < last
                last = now
        assert position[0] == 200_000 * 16
    assert fell == 0


def test_room_may_be_given_back_when_the_ring_is_closed(made: Map) -> None:
    """Records may reach the file when their worker has ended."""
    ring = Ring(made.fd, SIZE)
    ring.close()
    ring.give_back(8)


def test_a_ring_of_a_size_that_is_none_is_an_error_that_names_it() -> None:
    with pytest.raises(BpfError, match="cannot make the ring buffer odd"):
        new_ring("odd", 5000)


def test_what_cannot_be_run_is_an_error() -> None:
    reader, writer = os.pipe()
    try:
        with pytest.raises(BpfError, match="cannot run a BPF program"):
            Routine(reader)(b"\0" * 8)
    finally:
        os.close(reader)
        os.close(writer)

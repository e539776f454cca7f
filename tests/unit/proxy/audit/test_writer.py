"""No call without room for its record, and no record lost, torn or written twice: with real files, disks and pipes."""

import asyncio
import contextlib
import errno
import json
import multiprocessing
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.audit.places import PLACE_BYTES, Place
from proxy.audit.record import encode_lines
from proxy.audit.writer import AuditWriter

from .conftest import SOAK, record

PATIENCE_SECONDS = 20.0
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def audit(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
def make(audit: Path) -> Iterator[Callable[..., AuditWriter]]:
    """Makes writers that are closed at the end, whatever happens."""
    writers: list[AuditWriter] = []

    def make_writer(path: str | Path = audit, **options: Any) -> AuditWriter:
        writers.append(AuditWriter(path, **options))
        return writers[-1]

    yield make_writer
    for writer in writers:
        writer.close(0.1)


def ids(path: Path) -> list[str]:
    """The ids in a file, every line of which must be a whole record."""
    data = path.read_bytes()
    assert data == b"" or data.endswith(b"\n")
    return [json.loads(line)["id"] for line in data.splitlines()]


def put(writer: AuditWriter, number: int, **facts: Any) -> None:
    """Write one record as a relay does: when there is no room, wait for it."""
    wait_until(writer.reserve)
    assert writer.write(record(number, **facts))


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def expected(count: int) -> list[str]:
    return [record(number).id for number in range(count)]


# Files


def test_records_arrive_in_order_in_a_file_that_only_its_owner_may_read(make: Callable[..., AuditWriter], audit: Path) -> None:
    writer = make()
    for number in range(1000):
        put(writer, number)
    assert writer.close(PATIENCE_SECONDS)
    assert ids(audit) == expected(1000)
    assert stat.S_IMODE(audit.stat().st_mode) == 0o600


def test_a_record_is_written_without_waiting_for_others(make: Callable[..., AuditWriter], audit: Path) -> None:
    writer = make()
    put(writer, 0)
    wait_until(lambda: writer.depth == 0)
    assert ids(audit) == expected(1)


def test_an_existing_file_is_appended_to(make: Callable[..., AuditWriter], audit: Path) -> None:
    audit.write_bytes(b'{"id":"old"}\n')
    writer = make()
    put(writer, 0)
    assert writer.close(PATIENCE_SECONDS)
    assert ids(audit) == ["old", *expected(1)]


@pytest.mark.parametrize("torn", [b'{"time":"2026-', b"\0" * 5000])
def test_a_last_line_torn_by_a_crash_is_cut_off(make: Callable[..., AuditWriter], audit: Path, torn: bytes) -> None:
    audit.write_bytes(b'{"id":"old"}\n' + torn)
    writer = make()
    put(writer, 0)
    assert writer.close(PATIENCE_SECONDS)
    assert ids(audit) == ["old", *expected(1)]


def test_a_line_torn_by_another_worker_while_we_run_is_cut_off(make: Callable[..., AuditWriter], audit: Path) -> None:
    writer = make()
    with audit.open("ab") as other:
        other.write(b'{"id":"to')
    put(writer, 0)
    assert writer.close(PATIENCE_SECONDS)
    assert ids(audit) == expected(1)


def test_a_file_that_is_no_audit_file_is_refused_and_left_alone(audit: Path) -> None:
    audit.write_bytes(b"precious\nwithout a newline")
    with pytest.raises(OSError, match="does not end like an audit file"):
        AuditWriter(audit)
    assert audit.read_bytes() == b"precious\nwithout a newline"


def test_a_path_that_cannot_be_opened_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        AuditWriter(tmp_path / "absent" / "audit.jsonl")


def test_a_record_of_a_wrong_shape_still_leaves_a_line_and_harms_no_other(
    make: Callable[..., AuditWriter], audit: Path
) -> None:
    writer = make()
    put(writer, 0)
    put(writer, 1, generation=object())
    put(writer, 2)
    assert writer.close(PATIENCE_SECONDS)
    assert ids(audit) == expected(3)
    assert "record-unencodable" in audit.read_text().splitlines()[1]


# Several processes


def _work(path: Path, worker: int, count: int) -> None:
    writer = AuditWriter(path)
    for number in range(count):
        put(writer, number, id=f"{worker}.{number}", path=f"/{'x' * (number % 700)}")
    os._exit(0 if writer.close(PATIENCE_SECONDS * 5) else 1)


@pytest.mark.parametrize("total", [100_000, pytest.param(1_000_000, marks=pytest.mark.soak)])
def test_four_processes_share_one_file_and_no_record_is_torn_or_lost(audit: Path, total: int) -> None:
    if total > 100_000 and not SOAK:
        pytest.skip("the huge count runs with SLUICE_SOAK=1")
    workers = [FORK.Process(target=_work, args=(audit, worker, total // 4)) for worker in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]
    of_worker: dict[str, list[int]] = {str(worker): [] for worker in range(4)}
    for one in ids(audit):
        worker_name, number = one.split(".")
        of_worker[worker_name].append(int(number))
    assert all(numbers == list(range(total // 4)) for numbers in of_worker.values())


# A full disk


def test_a_full_disk_holds_calls_back_and_loses_nothing(make: Callable[..., AuditWriter], small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * (128 << 10))
    writer = make(small_disk / "audit.jsonl", capacity=200 * PLACE_BYTES)
    written = 0
    while writer.reserve():
        assert writer.write(record(written))
        written += 1
        if writer.last_error is None:
            time.sleep(0.0001)
    wait_until(lambda: writer.last_error is not None)
    assert "No space left" in str(writer.last_error)
    assert not writer.healthy
    # What is there is whole, also while the disk is full.
    held = ids(small_disk / "audit.jsonl")
    assert len(held) == written - writer.depth

    ballast.unlink()
    wait_until(lambda: writer.depth == 0)
    assert writer.healthy
    assert writer.reserve()
    writer.cancel()
    assert writer.close(PATIENCE_SECONDS)
    assert ids(small_disk / "audit.jsonl") == expected(written)


def test_a_disk_that_stays_full_is_reported_at_close(make: Callable[..., AuditWriter], small_disk: Path) -> None:
    writer = make(small_disk / "audit.jsonl")
    (small_disk / "ballast").write_bytes(b"x" * (252 << 10))
    for number in range(100):
        put(writer, number)
    assert not writer.close(0.2)
    assert writer.depth == 100 - len(ids(small_disk / "audit.jsonl"))


def test_a_file_over_the_size_limit_of_the_process_is_cut_back_to_whole_lines(audit: Path) -> None:
    """RLIMIT_FSIZE makes the kernel write a part of a batch, as a disk does that fills up in the middle of one."""
    script = (
        "import resource, sys, time\n"
        "from proxy.audit.writer import AuditWriter\n"
        "from tests.unit.proxy.audit.conftest import record\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))\n"
        "writer = AuditWriter(sys.argv[1])\n"
        "for number in range(100): writer.reserve() and writer.write(record(number, id=f'1.{number}'))\n"
        "while writer.last_error is None: time.sleep(0.002)\n"
        "print(writer.last_error, flush=True); input()\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "sys.exit(0 if writer.close(20) else 1)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(audit)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert "File too large" in child.stdout.readline()
        assert ids(audit) == []
        child.stdin.write("\n")
        child.stdin.close()
    assert child.returncode == 0
    assert ids(audit) == [f"1.{number}" for number in range(100)]


# Pipes and standard output


def test_a_slow_reader_of_a_fifo_holds_calls_back_and_gets_every_line(make: Callable[..., AuditWriter], tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    writer = make(fifo, capacity=500 * PLACE_BYTES)
    written = 0
    while written < 2000 and writer.reserve():
        writer.write(record(written))
        written += 1
    assert written < 2000
    assert not writer.healthy

    os.set_blocking(reader, True)
    received: list[bytes] = []
    drain = threading.Thread(target=lambda: received.extend(iter(lambda: os.read(reader, 1000), b"")))
    drain.start()
    for number in range(written, written + 100):
        put(writer, number)
    assert writer.close(PATIENCE_SECONDS)
    drain.join()
    assert [json.loads(line)["id"] for line in b"".join(received).splitlines()] == expected(written + 100)


def test_a_fifo_whose_reader_goes_away_gives_everything_to_the_next_one(
    make: Callable[..., AuditWriter], tmp_path: Path
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    writer = make(fifo)
    os.close(reader)
    put(writer, 0)
    wait_until(lambda: writer.last_error is not None)
    with open(fifo, "rb") as second:
        assert writer.close(PATIENCE_SECONDS)
        assert json.loads(second.read())["id"] == expected(1)[0]


def test_a_fifo_without_a_reader_is_an_error_at_start(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(OSError, match="No such device"):
        AuditWriter(fifo)


def _work_on_stdout(worker: int, stdout: int) -> None:
    os.dup2(stdout, 1)
    _work(Path("-"), worker, 2000)


@pytest.mark.parametrize("kind", ["pipe", "socket", "file"])
def test_workers_that_inherit_one_standard_output_do_not_mix_their_lines(kind: str, audit: Path) -> None:
    received: list[bytes] = []
    if kind == "file":
        end, stdout = -1, os.open(audit, os.O_WRONLY | os.O_CREAT)  # as a shell's ">", without O_APPEND
    elif kind == "pipe":
        end, stdout = os.pipe()
    else:
        end, stdout = (sock.detach() for sock in socket.socketpair())
    workers = [FORK.Process(target=_work_on_stdout, args=(worker, stdout)) for worker in range(2)]
    for worker in workers:
        worker.start()
    os.close(stdout)
    # Time for every worker to fill the pipe up and to be stopped in the middle of a batch, were it not for the lock.
    time.sleep(0.3)
    if end != -1:
        received.extend(iter(lambda: os.read(end, 1 << 16), b""))
        os.close(end)
    for worker in workers:
        worker.join()
    data = audit.read_bytes() if kind == "file" else b"".join(received)
    assert sorted(json.loads(line)["id"] for line in data.splitlines()) == sorted(
        f"{worker}.{number}" for worker in range(2) for number in range(2000)
    )


# Rotation


def test_rotation_under_load_loses_and_repeats_nothing(make: Callable[..., AuditWriter], audit: Path) -> None:
    writer = make()
    count = 200_000 if SOAK else 10_000
    rotated = []
    for number in range(count):
        put(writer, number)
        if number % (count // 10) == count // 20:
            rotated.append(audit.with_suffix(f".{number}"))
            audit.rename(rotated[-1])
            writer.reopen()
            wait_until(audit.exists)
    assert writer.close(PATIENCE_SECONDS)
    parts = [ids(path) for path in [*rotated, audit]]
    assert len(rotated) == 10
    assert [one for part in parts for one in part] == expected(count)


def test_a_file_that_is_moved_away_is_followed_by_a_new_one_without_any_signal(
    make: Callable[..., AuditWriter], audit: Path
) -> None:
    """logrotate's ``create``, without ``postrotate``."""
    writer = make()
    rotated = [audit.with_name(f"audit.{number}") for number in range(4)]
    for number in range(2000):
        put(writer, number)
        if number % 400 == 200 and number // 400 < len(rotated):
            wait_until(lambda: writer.depth == 0)
            audit.rename(rotated[number // 400])
            if number // 400 % 2:
                audit.touch(0o600)
    assert writer.close(PATIENCE_SECONDS)
    assert [one for path in (*rotated, audit) for one in ids(path)] == expected(2000)
    assert writer.moved == len(rotated)
    assert writer.last_error is None


def test_a_file_that_is_removed_is_made_anew_at_once_also_while_nothing_is_written(
    make: Callable[..., AuditWriter], audit: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = make()
    put(writer, 0)
    wait_until(lambda: writer.depth == 0)
    audit.unlink()
    wait_until(lambda: writer.moved == 1)
    assert audit.stat().st_mode & 0o777 == 0o600
    put(writer, 1)
    wait_until(lambda: writer.depth == 0)
    assert ids(audit) == [record(1).id]
    assert [message for message in caplog.messages if "moved away or removed" in message] == caplog.messages


def test_what_is_written_as_the_file_is_removed_is_written_once_more(
    make: Callable[..., AuditWriter], audit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write

    def write_and_remove(fd: int, data: bytes) -> int:
        written = write(fd, data)
        monkeypatch.setattr(os, "write", write)
        audit.unlink()
        return written

    writer = make()
    monkeypatch.setattr(os, "write", write_and_remove)
    put(writer, 0)
    put(writer, 1)
    assert writer.close(PATIENCE_SECONDS)
    assert ids(audit) == expected(2)


def test_a_folder_that_is_removed_holds_calls_back_like_a_full_disk_until_it_is_there_again(
    make: Callable[..., AuditWriter], tmp_path: Path
) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    writer = make(folder / "audit.jsonl")
    put(writer, 0)
    wait_until(lambda: writer.depth == 0)
    shutil.rmtree(folder)
    wait_until(lambda: not writer.healthy)  # also while nobody calls
    assert "No such file" in (writer.last_error or "")
    given = 0
    while writer.reserve():
        given += 1
        assert writer.write(record(given))
    assert writer.depth == given
    folder.mkdir()
    wait_until(lambda: writer.depth == 0)
    assert ids(folder / "audit.jsonl") == expected(given + 1)[1:]
    assert writer.healthy


def test_a_folder_that_is_moved_and_comes_back_leaves_no_trouble(make: Callable[..., AuditWriter], tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    writer = make(folder / "audit.jsonl")
    folder.rename(tmp_path / "away")
    wait_until(lambda: writer.last_error)
    put(writer, 0)
    wait_until(lambda: writer.depth == 0)
    (tmp_path / "away").rename(folder)
    wait_until(lambda: writer.last_error is None)
    assert ids(folder / "audit.jsonl") == expected(1)


def test_a_file_that_others_cut_gets_no_holes(
    make: Callable[..., AuditWriter], audit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """logrotate's ``copytruncate``, and in the moment in which the disk is full as well."""
    writer = make()
    copy = audit.with_name("audit.1")
    for number in range(40):
        put(writer, number)
        if number % 10 == 5:
            wait_until(lambda: writer.depth == 0)
            copy.open("ab").write(audit.read_bytes())
            os.truncate(audit, 0)
    wait_until(lambda: writer.depth == 0)
    assert ids(copy) + ids(audit) == expected(40)
    write = os.write

    def write_some(fd: int, data: bytes) -> int:
        written = write(fd, data[:10])
        monkeypatch.setattr(os, "write", fail)
        return written

    def fail(fd: int, data: bytes) -> int:
        os.truncate(audit, 0)
        monkeypatch.setattr(os, "write", write)
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "write", write_some)
    put(writer, 40)
    assert writer.close(PATIENCE_SECONDS)
    assert ids(audit) == [record(40).id]


def _work_and_follow(path: Path, worker: int, count: int) -> None:
    writer = AuditWriter(path)
    for number in range(count):
        put(writer, worker * count + number)
        if number % 20 == 0:
            time.sleep(0.01)
    assert writer.close(PATIENCE_SECONDS)


def test_several_workers_follow_a_file_that_is_removed_again_and_again_and_lose_nothing(audit: Path) -> None:
    workers, count = 3, 1500
    processes = [FORK.Process(target=_work_and_follow, args=(audit, worker, count)) for worker in range(workers)]
    for process in processes:
        process.start()
    kept: list[Path] = []
    while any(process.is_alive() for process in processes):
        time.sleep(0.05)
        with contextlib.suppress(FileNotFoundError):
            kept.append(audit.with_name(f"kept.{len(kept)}"))
            os.link(audit, kept[-1])  # so that what was in it can be counted
            audit.unlink()
    for process in processes:
        process.join(PATIENCE_SECONDS)
        assert process.exitcode == 0
    written = [int(one.partition(".")[2]) for path in (*kept, audit) if path.exists() for one in ids(path)]
    assert sorted(written) == list(range(workers * count))


def test_a_path_that_cannot_be_reopened_keeps_the_old_file_and_is_tried_again(
    make: Callable[..., AuditWriter], tmp_path: Path
) -> None:
    folder, moved = tmp_path / "log", tmp_path / "moved"
    folder.mkdir()
    writer = make(folder / "audit.jsonl")
    folder.rename(moved)
    writer.reopen()
    put(writer, 0)
    wait_until(lambda: writer.depth == 0)
    assert "No such file" in str(writer.last_error)
    assert not writer.healthy
    folder.mkdir()
    put(writer, 1)
    assert writer.close(PATIENCE_SECONDS)
    assert writer.last_error is None
    assert ids(moved / "audit.jsonl") + ids(folder / "audit.jsonl") == expected(2)


# The bargain with the relay


@pytest.fixture
def stuck(make: Callable[..., AuditWriter], tmp_path: Path) -> Iterator[tuple[AuditWriter, int]]:
    """A writer with room for 4 calls and 2 refusals whose sink takes nothing, and the descriptor that unblocks it."""
    fifo = tmp_path / "stuck"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    writer = make(fifo, capacity=4 * PLACE_BYTES, refusals=2)
    filler = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(filler, b"\n" * 4096)
    os.close(filler)
    yield writer, reader
    os.close(reader)


def test_open_calls_and_queued_records_share_the_capacity(stuck: tuple[AuditWriter, int]) -> None:
    writer, _ = stuck
    assert [writer.reserve() for _ in range(5)] == [True, True, True, True, False]
    assert writer.write(record())
    assert writer.write(record())
    assert not writer.reserve()
    writer.cancel()
    assert writer.reserve()
    assert writer.depth == 2


def test_refusals_have_room_of_their_own(stuck: tuple[AuditWriter, int]) -> None:
    writer, _ = stuck
    while writer.reserve():
        pass
    assert writer.write(record(), reserved=None)
    assert writer.write(record(), reserved=None)
    assert not writer.write(record(), reserved=None)
    assert writer.depth == 2


def test_a_flood_of_refusals_takes_no_room_from_calls(stuck: tuple[AuditWriter, int]) -> None:
    writer, _ = stuck
    while writer.write(record(), reserved=None):
        pass
    assert [writer.reserve() for _ in range(5)] == [True, True, True, True, False]


def test_waiters_get_room_in_their_order_and_own_a_reservation(stuck: tuple[AuditWriter, int]) -> None:
    writer, reader = stuck
    served: list[str] = []

    async def scenario() -> None:
        for _ in range(4):
            assert writer.reserve()
        for name in "abc":
            writer.on_room(lambda name=name: served.append(name))  # type: ignore[misc]
        await asyncio.sleep(0)
        assert served == []
        writer.cancel()
        assert served == ["a"]
        for _ in range(2):
            writer.write(record())
        os.set_blocking(reader, False)
        while len(served) < 3:
            # The sink moves again: the writing thread frees the room.
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.read(reader, 1 << 16)
            await asyncio.sleep(0.002)
        assert served == ["a", "b", "c"]
        assert not writer.reserve()

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE_SECONDS))


def test_nobody_overtakes_those_who_wait(make: Callable[..., AuditWriter]) -> None:
    writer = make()

    async def scenario() -> None:
        came = asyncio.Event()
        writer.on_room(came.set)
        assert not writer.reserve()
        await came.wait()
        assert writer.reserve()

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE_SECONDS))


def test_who_gives_up_waiting_is_not_served(stuck: tuple[AuditWriter, int]) -> None:
    writer, _ = stuck
    served: list[str] = []

    async def scenario() -> None:
        while writer.reserve():
            pass
        impatient = writer.on_room(lambda: served.append("impatient"))
        patient = writer.on_room(lambda: served.append("patient"))
        assert writer.forget(impatient)
        writer.cancel()
        assert served == ["patient"]
        assert not writer.forget(patient)

    asyncio.run(scenario())


def test_room_that_came_before_the_waiter_is_not_missed(make: Callable[..., AuditWriter]) -> None:
    writer = make()

    async def scenario() -> None:
        came = asyncio.Event()
        writer.on_room(came.set)
        await came.wait()

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE_SECONDS))


def test_an_exception_in_one_waiter_does_not_keep_the_next_one_out(make: Callable[..., AuditWriter]) -> None:
    writer = make()

    async def scenario() -> None:
        complaints: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(str(context["exception"])))
        came = asyncio.Event()

        def fail() -> None:
            raise RuntimeError("relay fault")

        writer.on_room(fail)
        writer.on_room(came.set)
        await came.wait()
        assert complaints == ["relay fault"]

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE_SECONDS))


def test_a_closed_writer_takes_nothing_more(make: Callable[..., AuditWriter], audit: Path) -> None:
    writer = make()
    assert writer.close(PATIENCE_SECONDS)
    assert not writer.reserve()
    assert not writer.write(record())
    assert ids(audit) == []


# Lines


def line(number: int) -> str:
    return encode_lines([record(number)]).decode("ascii")


def test_lines_and_records_keep_their_order_and_none_is_torn(make: Callable[..., AuditWriter], audit: Path) -> None:
    writer = make()
    for number in range(0, 2000, 5):
        for single in (number, number + 1):
            wait_until(writer.reserve)
            assert writer.write(record(single))
        writer.write_lines([line(number + 2), line(number + 3), line(number + 4)])
    assert writer.close(PATIENCE_SECONDS)
    assert ids(audit) == expected(2000)


def test_a_record_of_a_wrong_shape_among_lines_harms_none_of_them(make: Callable[..., AuditWriter], audit: Path) -> None:
    writer = make()
    writer.write_lines([line(0), line(1)])
    assert writer.reserve()
    assert writer.write(record(2, generation=object()))
    writer.write_lines([line(3)])
    assert writer.close(PATIENCE_SECONDS)
    assert ids(audit) == expected(4)


def drain(writer: AuditWriter, reader: int) -> None:
    """Read the sink until everything is in it."""

    def settled() -> bool:
        with contextlib.suppress(BlockingIOError):
            while os.read(reader, 1 << 20):
                pass
        return writer.depth == 0

    wait_until(settled)


def test_lines_take_the_room_of_as_many_records_and_give_it_back(stuck: tuple[AuditWriter, int]) -> None:
    writer, reader = stuck
    assert writer.room == 4
    writer.write_lines([line(0), line(1), line(2)])
    writer.write_lines([])
    assert (writer.room, writer.depth) == (1, 3)
    assert writer.reserve()
    assert not writer.reserve()
    drain(writer, reader)
    assert writer.room == 3


def test_lines_beyond_the_capacity_hold_others_back_until_they_are_written(stuck: tuple[AuditWriter, int]) -> None:
    writer, reader = stuck
    assert writer.reserve()
    writer.write_lines([line(number) for number in range(6)])
    assert not writer.healthy
    assert writer.room == 0
    assert not writer.reserve()
    drain(writer, reader)
    assert writer.room == 3, "one of four is still open"


# Shares


async def fill(writer: AuditWriter, subject: str) -> list[Place]:
    """Take what one subject may have, by as many connections as it takes."""
    places = []
    while writer.reserve(place := Place(PLACE_BYTES, writer.budget.claim(subject))):
        places.append(place)
    return places


def test_one_subject_cannot_take_the_places_of_another(make: Callable[..., AuditWriter]) -> None:
    writer = make(capacity=100 * PLACE_BYTES)
    writer.budget.expect(3)

    async def scenario() -> None:
        greedy = await fill(writer, "greedy")
        assert 50 < len(greedy) < 80
        assert len(await fill(writer, "honest")) > 10
        assert writer.healthy
        assert writer.room > 0, "the kernel path goes on"

    asyncio.run(scenario())


def test_who_waits_for_its_share_does_not_hold_up_another_subject(make: Callable[..., AuditWriter]) -> None:
    writer = make(capacity=100 * PLACE_BYTES)
    writer.budget.expect(3)

    async def scenario() -> None:
        greedy = await fill(writer, "greedy")
        served: list[str] = []
        for name in "abcdef":
            place = Place(PLACE_BYTES, writer.budget.claim("greedy"))
            writer.on_room(lambda name=name: served.append(name), place)  # type: ignore[misc]
        assert not writer.reserve(Place(PLACE_BYTES, writer.budget.claim("greedy"))), "nobody overtakes its own"
        assert writer.reserve(Place(PLACE_BYTES, writer.budget.claim("honest")))
        await asyncio.sleep(0)
        assert served == []
        for place in greedy[:40]:
            writer.cancel(place)
        await asyncio.sleep(0.01)
        assert sorted(served) == list("abcdef")

    asyncio.run(scenario())


def test_a_written_record_gives_its_place_back_to_its_subject(make: Callable[..., AuditWriter]) -> None:
    writer = make(capacity=100 * PLACE_BYTES)
    place = Place(10 * PLACE_BYTES, writer.budget.claim("web"))
    assert writer.reserve(place)
    assert writer.budget.used == place.size
    assert writer.write(record(), place)
    wait_until(lambda: writer.depth == 0)
    writer.reclaim()
    assert writer.budget.used == 0
    assert writer.room == 100

"""Which files are read as documents, how much of them, and when they are whole."""

import errno
import os
import socket
import threading
import time
from fcntl import F_SETLEASE
from pathlib import Path

import pytest

from policies.load import LoadError
from proxy import documents
from proxy.documents import MAX_FILE_BYTES, UNSEEN_WRITER_SECONDS, UnsettledError, read_sources

TEXT = "apiVersion: v1\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.yaml").write_text(TEXT)
    return tmp_path


def complaints(*paths: Path, settled: bool = False) -> str:
    with pytest.raises(LoadError) as raised:
        read_sources(paths, settled=settled)
    return str(raised.value)


@pytest.mark.parametrize("settled", [False, True])
@pytest.mark.parametrize("kind", ["fifo", "folder", "socket", "device", "link to a device"])
def test_what_is_no_regular_file_is_an_error_that_names_it_at_once(kind: str, settled: bool, folder: Path) -> None:
    odd = folder / "odd.yaml"
    with socket.socket(socket.AF_UNIX) as bound:
        if kind == "fifo":
            os.mkfifo(odd)
        elif kind == "folder":
            odd.mkdir()
        elif kind == "socket":
            bound.bind(str(odd))
        elif kind == "device":
            try:
                os.mknod(odd, 0o020600, os.makedev(1, 5))  # /dev/zero
            except PermissionError:
                pytest.skip("only root may make devices")
        else:
            odd.symlink_to("/dev/zero")
        assert f"{odd}:1:1" in complaints(folder, settled=settled)
        assert "not a regular file" in complaints(folder, settled=settled)


def test_a_pipe_that_takes_a_files_place_between_look_and_opening_holds_nobody_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(folder / "b.yaml")
    looks = iter([True, True, True, False])  # of each file, one before it is opened and one behind
    monkeypatch.setattr(documents, "S_ISREG", lambda _: next(looks))
    assert "b.yaml:1:1" in complaints(folder)


def test_links_to_files_are_followed_as_those_of_a_configmap(tmp_path: Path) -> None:
    (tmp_path / "..1").mkdir()
    (tmp_path / "..1" / "a.yaml").write_text(TEXT)
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
    assert [source.text for source in read_sources([tmp_path], settled=True)] == [TEXT]


def test_a_loop_of_links_and_a_file_that_is_gone_are_errors_that_name_it(folder: Path) -> None:
    loop = folder / "loop.yaml"
    loop.symlink_to("loop.yaml")
    for settled in (False, True):
        with pytest.raises(OSError, match=r"loop\.yaml") as raised:
            read_sources([folder], settled=settled)
        assert raised.value.errno == errno.ELOOP
    loop.unlink()
    loop.symlink_to("nowhere")
    with pytest.raises(FileNotFoundError, match=r"loop\.yaml"):
        read_sources([folder])


def test_what_is_too_large_is_not_read_to_its_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (folder / "huge.yaml").open("wb") as file:
        file.truncate(1 << 40)  # with a hole
    assert f"larger than {MAX_FILE_BYTES} bytes" in complaints(folder)
    (folder / "huge.yaml").unlink()
    monkeypatch.setattr(documents, "MAX_BYTES", 2 * len(TEXT))
    (folder / "b.yaml").write_text(TEXT)
    assert len(read_sources([folder])) == 2
    (folder / "c.yaml").write_text(TEXT)
    assert "bytes together" in complaints(folder)
    monkeypatch.setattr(documents, "MAX_FILES", 2)
    assert "more than 2 files" in complaints(folder)


@pytest.mark.parametrize("mode", ["a", "r+"])
def test_a_file_that_somebody_has_open_for_writing_is_not_whole(mode: str, folder: Path) -> None:
    with (folder / "a.yaml").open(mode):
        with pytest.raises(UnsettledError, match=r"a\.yaml is open for writing"):
            read_sources([folder], settled=True)
        assert len(read_sources([folder])) == 1, "who only looks at documents is told what there is"
    with (folder / "a.yaml").open():  # for reading
        assert len(read_sources([folder], settled=True)) == 1


def test_who_opens_it_for_writing_while_it_is_read_waits_until_it_has_been(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "a.yaml"
    opened: list[float] = []

    def write() -> None:
        with path.open("w"):
            opened.append(time.monotonic())

    writer = threading.Thread(target=write)
    lease = documents._lease

    def slow(fd: int, *about: object) -> bool:
        taken = lease(fd, *about)  # type: ignore[arg-type]
        writer.start()
        time.sleep(0.3)
        assert not opened
        return taken

    monkeypatch.setattr(documents, "_lease", slow)
    assert [source.text for source in read_sources([path], settled=True)] == [TEXT]
    writer.join(10)
    assert opened


def test_where_nobody_tells_who_writes_a_file_counts_as_whole_some_time_after_its_last_change(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_leases(fd: int, command: int, argument: int) -> int:
        if command == F_SETLEASE:
            raise OSError(errno.EINVAL, "no leases here")
        return 0

    monkeypatch.setattr(documents, "fcntl", no_leases)
    with pytest.raises(UnsettledError, match="changed a moment ago"):
        read_sources([folder], settled=True)
    past = time.time() - UNSEEN_WRITER_SECONDS - 1
    os.utime(folder / "a.yaml", (past, past))
    assert len(read_sources([folder], settled=True)) == 1

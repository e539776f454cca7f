"""What the loader says when the kernel or the machine refuses, and how we live beside other programs."""

import contextlib
import ctypes
import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpf import abi
from bpf.loader import BpfError, Object
from proxy.datapath import PROGRAMS, object_file
from proxy.workloads import cgroup2_mount
from tests.bpf.rig import Cgroup
from tests.harness import unique

CONFIG = b"\0" * abi.SLUICE_CONFIG.size


@pytest.fixture
def cgroup() -> Iterator[Cgroup]:
    made = Cgroup(cgroup2_mount() / "sluice" / unique("loader"))
    yield made
    made.remove()


@pytest.fixture
def objects() -> Iterator[list[Object]]:
    """Two instances of our programs, as two agents have them."""
    with contextlib.ExitStack() as stack:
        made = [Object(object_file("redirect"), CONFIG) for _ in range(2)]
        for each in made:
            stack.callback(each.close)
        yield made


def test_a_missing_object_is_named_with_the_command_that_builds_it(tmp_path: Path) -> None:
    with pytest.raises(BpfError, match=r"gone\.bpf\.o is missing: build it with make bpf"):
        Object(tmp_path / "gone.bpf.o", CONFIG)


def test_a_file_that_is_no_object_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.bpf.o").write_text("not an ELF file, but long enough to look at" * 10)
    with pytest.raises(BpfError, match=r"cannot open .*text\.bpf\.o: not a BPF object that"):
        Object(tmp_path / "text.bpf.o", CONFIG)


def test_an_object_of_another_header_is_not_configured() -> None:
    with pytest.raises(BpfError, match=r"cannot configure .* \(built from another sluice\.h\?\)"):
        Object(object_file("redirect"), CONFIG + b"\0" * 8)


def test_without_privileges_the_text_says_which() -> None:
    code = (
        "import os; os.setgid(65534); os.setuid(65534)\n"
        "from bpf.loader import Object, BpfError\nfrom pathlib import Path\nimport sys\n"
        "try: Object(Path(sys.argv[1]), bytes(int(sys.argv[2])))\n"
        "except BpfError as error: print(error)\n"
    )
    command = [sys.executable, "-c", "import bpf.loader\n" + code, str(object_file("redirect")), str(len(CONFIG))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=object_file("redirect").parent.parent)
    assert "not permitted: Sluice needs root, or CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN" in done.stdout, done.stderr


def test_names_that_are_not_in_the_object_are_errors(objects: list[Object], cgroup: Cgroup) -> None:
    with pytest.raises(BpfError, match="no map nothing"):
        objects[0].map("nothing")
    fd = os.open(cgroup.path, os.O_RDONLY)
    with pytest.raises(BpfError, match="no program nothing"):
        objects[0].attach("nothing", fd)
    os.close(fd)


def test_two_agents_hooks_live_on_one_cgroup(objects: list[Object], cgroup: Cgroup) -> None:
    fd = os.open(cgroup.path, os.O_RDONLY)
    for each in objects:
        for program in PROGRAMS:
            each.attach(f"sluice_{program}", fd)
    os.close(fd)
    shown = subprocess.run(["bpftool", "cgroup", "show", str(cgroup.path)], capture_output=True, text=True, check=True).stdout
    for program in PROGRAMS:
        assert shown.count(f"sluice_{program}"[:15]) >= 2, program
    with cgroup.inside(), socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        client.connect(server.getsockname())


def test_a_neighbour_that_wants_the_hook_for_itself_is_the_reason_given(objects: list[Object], cgroup: Cgroup) -> None:
    """Attached the old way and without flags, a program shares with nobody."""
    fd = os.open(cgroup.path, os.O_RDONLY)
    try:
        _attach_exclusively(objects[0], "sluice_connect4", fd)
        with pytest.raises(BpfError, match=r"cannot attach sluice_connect4 .*: another program is attached .* exclusive"):
            objects[1].attach("sluice_connect4", fd)
        objects[1].attach("sluice_connect6", fd)  # the other hooks are free
    finally:
        os.close(fd)


def _attach_exclusively(of: Object, program: str, cgroup_fd: int) -> None:
    lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    lib.bpf_object__find_program_by_name.restype = ctypes.c_void_p
    lib.bpf_object__find_program_by_name.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    lib.bpf_program__fd.argtypes = [ctypes.c_void_p]
    found = lib.bpf_object__find_program_by_name(of._object, program.encode())
    connect4 = 10  # BPF_CGROUP_INET4_CONNECT
    assert lib.bpf_prog_attach(lib.bpf_program__fd(found), cgroup_fd, connect4, 0) == 0, os.strerror(ctypes.get_errno())


def test_a_full_map_is_an_error_that_says_so(objects: list[Object]) -> None:
    cgroups = objects[0].map("cgroups")
    entries = ((number.to_bytes(8, sys.byteorder), abi.SLUICE_CGROUP.pack(1, 0)) for number in range(abi.Limit.MAX_CGROUPS + 1))
    with pytest.raises(BpfError, match="cannot write BPF map cgroups: the map is full"):
        cgroups.set_all(entries)
    assert ctypes.get_errno() in (errno.E2BIG, errno.ENOSPC)


def test_what_is_not_in_a_map_is_none_and_deleting_it_is_no_error(objects: list[Object]) -> None:
    cgroups = objects[0].map("cgroups")
    key, value = (7).to_bytes(8, sys.byteorder), abi.SLUICE_CGROUP.pack(1, 0)
    assert cgroups.get(key) is None
    assert cgroups.pop(key) is None
    cgroups.delete(key)
    cgroups.set(key, value)
    assert (cgroups.get(key), cgroups.keys()) == (value, [key])
    assert cgroups.pop(key) == value
    assert cgroups.keys() == []

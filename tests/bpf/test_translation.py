"""What may lead a local address elsewhere, as the kernel tells it."""

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpf.loader import CONNECT4, programs_at
from proxy import translation
from proxy.workloads import cgroup2_mount
from tests.bpf.rig import Rig

IPV4, OUTPUT, PREROUTING = 2, 3, 0
_NEW_TABLE, _NEW_CHAIN, _DELETE_TABLE = 0, 3, 2


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _nftables(*messages: tuple[int, bytes]) -> None:
    """One batch of nfnetlink(7); there may be no nft program here."""
    batch = [(10 << 8 | kind, bytes([IPV4, 0, 0, 0]), body) for kind, body in messages]
    batch = [(0x10, struct.pack("!BBH", 0, 0, 10), b""), *batch, (0x11, struct.pack("!BBH", 0, 0, 10), b"")]
    data = b""
    for number, (kind, head, body) in enumerate(batch):
        flags = 0x405 if 0 < number < len(batch) - 1 else 1  # create, acknowledge
        data += struct.pack("=IHHII", 20 + len(body), kind, flags, number, 0) + head + body
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as netlink:
        netlink.settimeout(1)
        netlink.send(data)
        for _ in messages:
            reply = netlink.recv(65536)
            assert struct.unpack_from("=i", reply, 16)[0] == 0, os.strerror(-struct.unpack_from("=i", reply, 16)[0])


@contextlib.contextmanager
def chain(kind: bytes, hook: int) -> Iterator[None]:
    name = _attribute(1, b"sluicetest\0")
    hooks = _attribute(1, struct.pack("!I", hook)) + _attribute(2, struct.pack("!i", -100))
    try:
        _nftables(
            (_NEW_TABLE, name),
            (_NEW_CHAIN, name + _attribute(3, b"c\0") + _attribute(0x8000 | 4, hooks) + _attribute(7, kind + b"\0")),
        )
    except (OSError, AssertionError) as error:
        pytest.skip(f"no nftables here ({error})")
    try:
        yield
    finally:
        _nftables((_DELETE_TABLE, name))


@pytest.fixture(autouse=True)
def _nothing_else_translates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if translation.translates(cgroup2_mount()):
        pytest.skip("something on this machine translates addresses")


@pytest.mark.parametrize(
    ("kind", "hook", "found"), [(b"nat", OUTPUT, True), (b"filter", PREROUTING, True), (b"filter", OUTPUT, False)]
)
def test_chains_of_nftables_that_translate_are_found(kind: bytes, hook: int, found: bool) -> None:
    with chain(kind, hook):
        assert translation.translates(cgroup2_mount()) is found
    assert not translation.translates(cgroup2_mount())


@pytest.mark.parametrize(("text", "found"), [("filter\n", False), ("filter\nnat\n", True), ("mangle\n", True)])
def test_tables_of_iptables_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, found: bool) -> None:
    names = tmp_path / "names"
    names.write_text(text)
    monkeypatch.setattr(translation, "_TABLES", (tmp_path / "missing", names))
    assert translation.translates(cgroup2_mount()) is found


@pytest.mark.parametrize(("lines", "found"), [(3, False), (4, True)])
def test_virtual_servers_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lines: int, found: bool) -> None:
    services = tmp_path / "ip_vs"
    services.write_text("line\n" * lines)
    monkeypatch.setattr(translation, "_IPVS", services)
    assert translation.translates(cgroup2_mount()) is found


def test_connect_hooks_of_others_count_and_ours_do_not(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.attach()
    root = os.open(cgroup2_mount(), os.O_RDONLY)
    assert "sluice_connect4"[:15] in programs_at(root, CONNECT4)
    os.close(root)
    assert not translation.translates(cgroup2_mount())
    monkeypatch.setattr(translation, "OUR_PROGRAMS", "other_")
    assert translation.translates(cgroup2_mount())


def test_doubt_is_translation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(translation, "_TABLES", (tmp_path,))  # a folder cannot be read
    assert translation.translates(cgroup2_mount())
    assert translation.translates(tmp_path / "missing")

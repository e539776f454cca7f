"""A room of its own for a run of tests, so that several runs side by side do not meet, nor the machine's other work.

A room has a cgroup tree whose root is its own cgroup (hooks at the root of the tree see nobody else), a network with one card
beside loopback, and an empty /run. When it is closed, everything that is left in it is killed and removed.
``python -m tests.room COMMAND...`` furnishes the room that it is run in, by `entrance`, and becomes the command.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from proxy.guard import remove_cgroup
from proxy.workloads import cgroup2_mount
from tests.requirements import missing_for_bpf

ADDRESSES = ("192.0.2.2/24", "fd00::2/64")
GATEWAY = "192.0.2.1"


@contextlib.contextmanager
def cgroup(name: str) -> Iterator[Path]:
    """A cgroup that becomes the root of a room's tree. At the end all processes in it are killed and it is removed."""
    for left in cgroup2_mount().glob(f"{name}-*"):
        if not Path("/proc", left.name.rpartition("-")[2]).exists():  # whoever made it was killed
            _clear(left)
    made = cgroup2_mount() / f"{name}-{os.getpid()}"
    made.mkdir()
    try:
        yield made
    finally:
        _clear(made)


def _clear(root: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # before Linux 5.14
        (root / "cgroup.kill").write_text("1")
    for folder, _, _ in os.walk(root, topdown=False):
        remove_cgroup(Path(folder))


def entrance(root: Path, *command: str) -> list[str]:
    """``command`` as it is to be run for it to be in the room with ``root`` as the root of its cgroup tree."""
    enter_cgroup = ["sh", "-c", 'echo 0 > "$0" && exec "$@"', str(root / "cgroup.procs")]
    return [*enter_cgroup, "unshare", "--net", "--mount", sys.executable, "-m", "tests.room", *command]


def missing() -> str | None:
    """Why rooms cannot be made here; None if they can."""
    reason = missing_for_bpf()
    if reason is not None:
        return reason
    try:
        with cgroup("sluice-room") as root:
            attempt = subprocess.run(entrance(root, "true"), capture_output=True, text=True)
    except OSError as error:
        return str(error)
    return None if attempt.returncode == 0 else f"no namespaces of its own: {attempt.stderr.strip()}"


def _hierarchies() -> dict[Path, Path]:
    """Where each cgroup hierarchy is mounted, and the folder there of our own cgroup. A hybrid host has several."""
    own, found = {}, {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        own[controllers] = path.lstrip("/")
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, kind, options, *_ = line.split()
        if kind == "cgroup2":
            found[Path(mount)] = Path(mount, own[""])
        elif kind == "cgroup":
            for controllers, path in own.items():
                if controllers and set(controllers.split(",")) <= set(options.split(",")):
                    found[Path(mount)] = Path(mount, path)
    return found  # in a room within a room a hierarchy is mounted over itself


def _furnish() -> None:
    for mount, own in _hierarchies().items():
        if own != mount:
            _run("mount", "--bind", str(own), str(mount))
    _run("mount", "-t", "tmpfs", "tmpfs", "/run")
    _run("ip", "link", "set", "lo", "up")
    _run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "cable")
    for card in ("eth0", "cable"):
        _run("ip", "link", "set", card, "up")
    for address in ADDRESSES:
        _run("ip", "address", "add", address, "dev", "eth0", *(["nodad"] if ":" in address else []))
    _run("ip", "route", "add", "default", "via", GATEWAY)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


if __name__ == "__main__":
    _furnish()
    # Last, for in a cgroup namespace nobody is told where a cgroup is outside of it.
    os.execvp("unshare", ["unshare", "--cgroup", *sys.argv[1:]])

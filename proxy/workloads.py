"""Who is who: which cgroups of this host are which workload.

The kernel decides the subject of a connection by the caller's cgroup; this module keeps the kernel's table of cgroups true.
It walks only where a glob can match, and inotify tells when a cgroup appears or goes. A directory in which a new workload
might appear is entered as *unsettled*: until its new child has been looked at, the hook refuses the child's connections.
"""

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec

from policies.model import Workload

# The first identity of a workload and the last: 0 is the host, 0xffff "unresolved" (bpf/sluice.h).
FIRST_ID, LAST_ID = 1, 0xFFFE
# Deeper cgroups are not looked up by the hook, so a workload may not be there (SLUICE_MAX_DEPTH).
MAX_DEPTH = 16
# Cgroups below this folder of ours are made when a document names them, so that they exist before their first process.
OWN_FOLDER = "sluice"

_IN_CREATE, _IN_DELETE, _IN_MOVE = 0x100, 0x200, 0xC0
_IN_IGNORED, _IN_ONLYDIR = 0x8000, 0x1000000
_EVENT = struct.Struct("iIII")  # inotify(7): watch, mask, cookie, length of the name that follows


class WorkloadError(Exception):
    """A workload cannot be told apart from the rest of the host; the text says which and why."""


def cgroup2_mount() -> Path:
    """Where cgroup v2 is mounted: /sys/fs/cgroup on a unified host, a folder below it on a hybrid one."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, folder, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(folder)
    raise WorkloadError("cgroup v2 is not mounted; mount it with: mount -t cgroup2 none /sys/fs/cgroup")


class Ids:
    """Names of workloads as the numbers of the kernel's tables. A number is never given to another name."""

    def __init__(self) -> None:
        self._by_name: dict[str, int] = {}
        self._by_id: dict[int, str] = {}

    def of(self, name: str) -> int:
        known = self._by_name.get(name)
        if known is None:
            known = FIRST_ID + len(self._by_name)
            if known > LAST_ID:
                raise WorkloadError(f"more than {LAST_ID} workload names since the agent started; restart it")
            self._by_name[name], self._by_id[known] = known, name
        return known

    def name(self, number: int) -> str | None:
        return self._by_id.get(number)

    def all(self) -> dict[str, int]:
        return dict(self._by_name)


class Found(msgspec.Struct, frozen=True):
    """One look at the cgroup tree: cgroup id to workload name (None: nobody's), and the ids and paths that are unsettled."""

    cgroups: Mapping[int, str | None]
    unsettled: frozenset[int]
    watched: frozenset[Path]


_Folder = tuple[Path, int, str | None, list[tuple[tuple[str, ...], str]]]


def scan(mount: Path, workloads: Iterable[Workload]) -> Found:
    """Look at every cgroup below ``mount`` that a workload's glob can match, or that lies on the way to one."""
    globs = [(_parts(glob), workload.name) for workload in workloads for glob in workload.cgroups]
    cgroups: dict[int, str | None] = {}
    unsettled: set[int] = set()
    watched: set[Path] = set()

    # Of each folder that is to be looked at: its inode, who owns what no glob below claims, and what is left of the globs that
    # led there. A function that calls itself would keep all of it in a circle until a garbage collection finds it.
    waiting: list[_Folder] = []
    if globs:
        waiting.append((mount, mount.stat().st_ino, None, [(parts, who) for parts, who in globs if parts]))
    while waiting:
        folder, inode, above, partial = waiting.pop()
        try:
            children = _children(folder)
        except FileNotFoundError:
            if folder == mount:
                raise
            continue  # gone meanwhile; inotify brings us back
        watched.add(folder)
        names = {name for name, _ in children}
        open_ended = any(parts[0] not in names for parts, _ in partial)  # a wildcard, or a folder that is not there yet
        if open_ended:
            unsettled.add(inode)
            cgroups.setdefault(inode, above)
        for name, child in children:
            onward = list(dict.fromkeys((rest, who) for parts, who in partial for rest in _step(parts, name)))
            claimed = next((who for rest, who in onward if not rest), None)
            if claimed and len(folder.parts) - len(mount.parts) >= MAX_DEPTH:
                raise WorkloadError(f"workload {claimed}: cgroup {folder / name} is more than {MAX_DEPTH} levels deep")
            owner = claimed or above
            if claimed or open_ended:
                cgroups[child] = owner
            deeper = [(rest, who) for rest, who in onward if rest]
            if deeper:
                waiting.append((folder / name, child, owner, deeper))
    return Found(cgroups, frozenset(unsettled), frozenset(watched))


def _parts(glob: str) -> tuple[str, ...]:
    return tuple(part for part in glob.split("/") if part)


def _step(parts: tuple[str, ...], name: str) -> list[tuple[str, ...]]:
    """What is left to match of a glob after one folder name. ``**`` stands for any number of folders."""
    if parts[0] == "**":
        rest = parts[1:]
        return [parts, *(_step(rest, name) if rest else [()])]
    return [parts[1:]] if fnmatchcase(name, parts[0]) else []


def _children(folder: Path) -> list[tuple[str, int]]:
    with os.scandir(folder) as entries:
        return [(entry.name, entry.inode()) for entry in entries if entry.is_dir(follow_symlinks=False)]


def prepare(mount: Path, workloads: Iterable[Workload]) -> None:
    """Make the cgroups that documents name below our own folder, so that they are known before their first process."""
    for workload in workloads:
        for glob in workload.cgroups:
            parts = _parts(glob)
            if parts[:1] == (OWN_FOLDER,) and not any(mark in glob for mark in "*?["):
                mount.joinpath(*parts).mkdir(parents=True, exist_ok=True)


class Watch:
    """inotify on the folders in which cgroups that matter can appear or go. ``fd`` is readable when something did."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise WorkloadError(f"inotify is not available: {os.strerror(ctypes.get_errno())}")
        self._folders: dict[Path, int] = {}

    def follow(self, folders: Iterable[Path]) -> None:
        wanted = set(folders)
        for folder in set(self._folders) - wanted:
            self._libc.inotify_rm_watch(self.fd, self._folders.pop(folder))
        for folder in wanted - set(self._folders):
            mask = _IN_CREATE | _IN_DELETE | _IN_MOVE | _IN_ONLYDIR
            number = self._libc.inotify_add_watch(self.fd, os.fsencode(folder), mask)
            if number >= 0:
                self._folders[folder] = number

    def drain(self) -> None:
        """Forget what was reported: the caller looks again anyway. Only that a followed folder itself is gone matters."""
        gone: set[int] = set()
        with contextlib.suppress(BlockingIOError):
            while reports := os.read(self.fd, 65536):
                start = 0
                while start < len(reports):
                    number, mask, _, name_length = _EVENT.unpack_from(reports, start)
                    start += _EVENT.size + name_length
                    if mask & _IN_IGNORED:
                        gone.add(number)
        # One that is made again under the same name must be followed again.
        self._folders = {folder: number for folder, number in self._folders.items() if number not in gone}

    def close(self) -> None:
        os.close(self.fd)

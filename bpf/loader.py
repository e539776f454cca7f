"""Loads BPF objects and holds their maps and links: a thin layer over libbpf by ctypes.

Only what Sluice needs. Every failure is a ``BpfError`` whose text names the cause and what to do about it. A link or a map
lives as long as some process has its file descriptor; nothing is ever pinned.
"""

import ctypes
import errno
import mmap
import os
from collections.abc import Iterable
from ctypes import POINTER, byref, c_bool, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path

BATCH = 4096  # map entries per system call: large enough to make the call's cost vanish, small enough for the stack


class BpfError(Exception):
    """The kernel or libbpf refused; the text says what, why, and what to do."""


def _libbpf() -> ctypes.CDLL:
    try:
        lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise BpfError(f"libbpf 1.x is not installed ({error}); on Debian and Ubuntu: apt install libbpf1") from None
    for name, result, arguments in (
        ("bpf_object__open_file", c_void_p, [c_char_p, c_void_p]),
        ("bpf_object__load", c_int, [c_void_p]),
        ("bpf_object__close", None, [c_void_p]),
        ("bpf_object__find_map_by_name", c_void_p, [c_void_p, c_char_p]),
        ("bpf_object__find_program_by_name", c_void_p, [c_void_p, c_char_p]),
        ("bpf_object__next_program", c_void_p, [c_void_p, c_void_p]),
        ("bpf_program__set_autoload", c_int, [c_void_p, c_bool]),
        ("bpf_map__fd", c_int, [c_void_p]),
        ("bpf_map__key_size", c_uint32, [c_void_p]),
        ("bpf_map__value_size", c_uint32, [c_void_p]),
        ("bpf_map__set_initial_value", c_int, [c_void_p, c_void_p, c_size_t]),
        ("bpf_map__reuse_fd", c_int, [c_void_p, c_int]),
        ("bpf_map_get_fd_by_id", c_int, [c_uint32]),
        ("bpf_map_create", c_int, [c_int, c_char_p, c_uint32, c_uint32, c_uint32, c_void_p]),
        ("bpf_map_lookup_elem", c_int, [c_int, c_void_p, c_void_p]),
        ("bpf_map_lookup_and_delete_elem", c_int, [c_int, c_void_p, c_void_p]),
        ("bpf_map_update_elem", c_int, [c_int, c_void_p, c_void_p, c_uint64]),
        ("bpf_map_delete_elem", c_int, [c_int, c_void_p]),
        ("bpf_map_get_next_key", c_int, [c_int, c_void_p, c_void_p]),
        ("bpf_map_update_batch", c_int, [c_int, c_void_p, c_void_p, POINTER(c_uint32), c_void_p]),
        ("bpf_program__attach_cgroup", c_void_p, [c_void_p, c_int]),
        ("bpf_program__attach_iter", c_void_p, [c_void_p, c_void_p]),
        ("bpf_iter_create", c_int, [c_int]),
        ("bpf_program__fd", c_int, [c_void_p]),
        ("bpf_prog_attach", c_int, [c_int, c_int, c_int, c_uint32]),
        ("bpf_prog_test_run_opts", c_int, [c_int, c_void_p]),
        ("bpf_prog_query", c_int, [c_int, c_int, c_uint32, c_void_p, c_void_p, POINTER(c_uint32)]),
        ("bpf_prog_get_fd_by_id", c_int, [c_uint32]),
        ("bpf_obj_get_info_by_fd", c_int, [c_int, c_void_p, POINTER(c_uint32)]),
        ("bpf_link__fd", c_int, [c_void_p]),
        ("bpf_link__destroy", c_int, [c_void_p]),
        ("libbpf_num_possible_cpus", c_int, []),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


_PRINT = ctypes.CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)


class _Complaints:
    """What libbpf printed: the verifier's reasons are only to be had this way."""

    def __init__(self, lib: ctypes.CDLL) -> None:
        self.lines: list[str] = []
        vsnprintf = ctypes.CDLL(None).vsnprintf

        def keep(level: int, form: bytes, arguments: int) -> int:
            if level == 0:  # LIBBPF_WARN
                text = ctypes.create_string_buffer(16384)
                vsnprintf(text, c_size_t(len(text)), form, c_void_p(arguments))
                self.lines.append(text.value.decode(errors="replace").strip())
            return 0

        self._callback = _PRINT(keep)  # kept alive here: libbpf holds only the address
        lib.libbpf_set_print(self._callback)

    def take(self) -> str:
        text, self.lines = "\n".join(self.lines[-20:]), []
        return text


# libbpf's own errors begin here (LIBBPF_ERRNO__START); all that we can meet mean that the file is not what it should be.
_LIBBPF_ERRORS = 4000


def _hint(error: int) -> str:
    if error >= _LIBBPF_ERRORS:
        return "not a BPF object that this libbpf can read: build it with make bpf"
    return {
        errno.EPERM: "not permitted: Sluice needs root, or CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN",
        errno.EACCES: "the verifier of this kernel refused the program",
        errno.EBUSY: "another program is attached to this hook in exclusive mode (sluice check names it)",
        errno.EINVAL: "this kernel does not know the hook; Sluice needs Linux 6.1 or later",
        errno.ENOENT: "this kernel has no BTF (/sys/kernel/btf/vmlinux); it must be built with CONFIG_DEBUG_INFO_BTF",
        errno.ESRCH: "this kernel has no BTF (/sys/kernel/btf/vmlinux); it must be built with CONFIG_DEBUG_INFO_BTF",
        errno.E2BIG: "the map is full",
        errno.ENOSPC: "the map is full",
        errno.ENOMEM: "out of memory",
    }.get(error, os.strerror(error))


class Map:
    """A BPF map by its file descriptor. Keys and values are bytes of the sizes that sluice.h gives."""

    def __init__(self, lib: ctypes.CDLL, name: str, fd: int, key_size: int, value_size: int) -> None:
        self._lib, self.name, self.fd, self.key_size, self.value_size = lib, name, fd, key_size, value_size
        self._value = ctypes.create_string_buffer(value_size)

    def get(self, key: bytes) -> bytes | None:
        if self._lib.bpf_map_lookup_elem(self.fd, key, self._value) == 0:
            return self._value.raw
        self._must_be_absent("read")
        return None

    def pop(self, key: bytes) -> bytes | None:
        """Look up and delete in one step (hash maps)."""
        if self._lib.bpf_map_lookup_and_delete_elem(self.fd, key, self._value) == 0:
            return self._value.raw
        self._must_be_absent("take from")
        return None

    def set(self, key: bytes, value: bytes) -> None:
        if self._lib.bpf_map_update_elem(self.fd, key, value, 0) != 0:
            raise self._error("write")

    def delete(self, key: bytes) -> None:
        """Delete; a missing key is no error."""
        if self._lib.bpf_map_delete_elem(self.fd, key) != 0:
            self._must_be_absent("delete from")

    def set_all(self, entries: Iterable[tuple[bytes, bytes]]) -> None:
        entries = list(entries)
        for start in range(0, len(entries), BATCH):
            batch = entries[start : start + BATCH]
            count = c_uint32(len(batch))
            keys, values = b"".join(key for key, _ in batch), b"".join(value for _, value in batch)
            if self._lib.bpf_map_update_batch(self.fd, keys, values, byref(count), None) != 0:
                raise self._error("write")

    def keys(self) -> list[bytes]:
        found, key, following = [], None, ctypes.create_string_buffer(self.key_size)
        while self._lib.bpf_map_get_next_key(self.fd, key, following) == 0:
            key = following.raw
            found.append(key)
        return found

    @property
    def number(self) -> int:
        """By which the kernel finds the map as long as somebody holds it (`fd_of_map`)."""
        lines = Path(f"/proc/self/fdinfo/{self.fd}").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("map_id:"))

    def memory(self, size: int) -> mmap.mmap:
        """The values of a BPF_F_MMAPABLE array as shared memory."""
        return mmap.mmap(self.fd, (size + mmap.PAGESIZE - 1) // mmap.PAGESIZE * mmap.PAGESIZE)

    def per_cpu_sums(self, count: int) -> list[int]:
        """The first ``count`` 64-bit counters of a per-CPU array, summed over the CPUs."""
        cpus = self._lib.libbpf_num_possible_cpus()
        values = (c_uint64 * cpus)()
        sums = []
        for index in range(count):
            if self._lib.bpf_map_lookup_elem(self.fd, byref(c_uint32(index)), values) != 0:
                raise self._error("read")
            sums.append(sum(values))
        return sums

    def _must_be_absent(self, verb: str) -> None:
        if ctypes.get_errno() != errno.ENOENT:
            raise self._error(verb)

    def _error(self, verb: str) -> BpfError:
        return BpfError(f"cannot {verb} BPF map {self.name}: {_hint(ctypes.get_errno())}")


class Object:
    """A compiled BPF object, loaded into the kernel. Closing it drops its maps and links, unless others hold them too."""

    def __init__(self, path: Path, config: bytes, shared: Iterable[Map] = (), only_maps: bool = False) -> None:
        """Load ``path`` with ``config`` as the contents of its section .rodata.config.

        Maps with the names of those in ``shared`` are those, instead of new ones. With ``only_maps`` there are no programs,
        which the verifier would take its time for.
        """
        self._lib = lib = _libbpf()
        self._complaints = _Complaints(lib)
        self._links: list[int] = []
        if not path.exists():
            raise BpfError(f"{path} is missing: build it with make bpf")
        self._object = lib.bpf_object__open_file(os.fsencode(path), None)
        if not self._object:
            raise self._error(f"cannot open {path}")
        section = lib.bpf_object__find_map_by_name(self._object, b".rodata.config")
        if not section or lib.bpf_map__set_initial_value(section, config, len(config)) != 0:
            raise self._error(f"cannot configure {path} (built from another sluice.h?)")
        for given in shared:
            own = lib.bpf_object__find_map_by_name(self._object, given.name.encode())
            if not own or lib.bpf_map__reuse_fd(own, given.fd) != 0:
                raise self._error(f"cannot share the map {given.name} with {path.name}")
        if only_maps:
            program = None
            while program := lib.bpf_object__next_program(self._object, program):
                lib.bpf_program__set_autoload(program, False)
        if lib.bpf_object__load(self._object) != 0:
            raise self._error(f"cannot load {path.name} into the kernel")

    def map(self, name: str) -> Map:
        found = self._lib.bpf_object__find_map_by_name(self._object, name.encode())
        if not found:
            raise BpfError(f"the BPF object has no map {name}")
        sizes = self._lib.bpf_map__key_size(found), self._lib.bpf_map__value_size(found)
        return Map(self._lib, name, self._lib.bpf_map__fd(found), *sizes)

    def attach(self, program: str, cgroup_fd: int) -> int:
        """Attach a program to a cgroup beside whatever else is there; returns the link's file descriptor."""
        found = self._program(program)
        link = self._lib.bpf_program__attach_cgroup(found, cgroup_fd)
        if not link:
            # Having loaded the program we are not without rights: the kernel says EPERM of a neighbour that does not share.
            if ctypes.get_errno() == errno.EPERM:
                ctypes.set_errno(errno.EBUSY)
            raise self._error(f"cannot attach {program} to the cgroup")
        self._links.append(link)
        return int(self._lib.bpf_link__fd(link))

    def attach_to_sockets(self, program: str, sockets: Map) -> None:
        """Let a program see every message that is sent by the sockets in a map. It stays as long as the map does."""
        if self._lib.bpf_prog_attach(self._lib.bpf_program__fd(self._program(program)), sockets.fd, _SK_MSG_VERDICT, 0) != 0:
            raise self._error(f"cannot attach {program} to the map {sockets.name}")

    def iterate(self, program: str) -> bytes:
        """Run an iterator over all that it iterates over, in our network namespace; what it has written."""
        link = self._lib.bpf_program__attach_iter(self._program(program), None)
        if not link:
            raise self._error(f"cannot attach {program}")
        fd = self._lib.bpf_iter_create(self._lib.bpf_link__fd(link))
        self._lib.bpf_link__destroy(link)
        if fd < 0:
            raise self._error(f"cannot run {program}")
        with open(fd, "rb", buffering=0) as iterator:
            return iterator.readall()

    def routine(self, program: str) -> "Routine":
        """A program that is called, and not attached."""
        return Routine(os.dup(self._lib.bpf_program__fd(self._program(program))))

    def _program(self, name: str) -> int:
        found = self._lib.bpf_object__find_program_by_name(self._object, name.encode())
        if not found:
            raise BpfError(f"the BPF object has no program {name}")
        return int(found)

    def close(self) -> None:
        for link in self._links:
            self._lib.bpf_link__destroy(link)
        self._links.clear()
        if self._object:
            self._lib.bpf_object__close(self._object)
            self._object = None

    def _error(self, what: str) -> BpfError:
        error = ctypes.get_errno()
        details = self._complaints.take()
        return BpfError(f"{what}: {_hint(error)}" + (f"\n{details}" if details else ""))


class _TestRun(ctypes.Structure):
    """struct bpf_test_run_opts of libbpf 1.0."""

    _fields_ = (
        ("size", c_size_t),
        ("data_in", c_void_p),
        ("data_out", c_void_p),
        ("data_size_in", c_uint32),
        ("data_size_out", c_uint32),
        ("ctx_in", c_void_p),
        ("ctx_out", c_void_p),
        ("ctx_size_in", c_uint32),
        ("ctx_size_out", c_uint32),
        ("retval", c_uint32),
        ("repeat", c_int),
        ("duration", c_uint32),
        ("flags", c_uint32),
        ("cpu", c_uint32),
        ("batch_size", c_uint32),
    )


class Routine:
    """A program of type ``syscall``, by its file descriptor: called with one argument, a structure."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._lib = _libbpf()

    def __call__(self, argument: bytes) -> int:
        """What the program returned."""
        buffer = ctypes.create_string_buffer(argument, len(argument))
        run = _TestRun(size=ctypes.sizeof(_TestRun), ctx_in=ctypes.addressof(buffer), ctx_size_in=len(argument))
        if self._lib.bpf_prog_test_run_opts(self.fd, byref(run)) != 0:
            raise BpfError(f"cannot run a BPF program: {_hint(ctypes.get_errno())}")
        return int(run.retval)


_SK_MSG_VERDICT = 7  # enum bpf_attach_type
CONNECT4, CONNECT6 = 10, 11  # of the same
_MOST_PROGRAMS = 64  # BPF_CGROUP_MAX_PROGS: the kernel attaches no more to a cgroup
_INFO_NAME = slice(64, 80)  # of struct bpf_prog_info
_RINGBUF = 27  # enum bpf_map_type


def new_ring(name: str, size: int) -> Map:
    """A ring buffer of ``size`` bytes, a power of two and of pages."""
    lib = _libbpf()
    fd = lib.bpf_map_create(_RINGBUF, name.encode(), 0, 0, size, None)
    if fd < 0:
        raise BpfError(f"cannot make the ring buffer {name}: {_hint(ctypes.get_errno())}")
    return Map(lib, name, fd, 0, 0)


def programs_at(cgroup_fd: int, hook: int) -> list[str]:
    """The names of the programs, of anybody, that are attached to a cgroup at ``hook`` (enum bpf_attach_type)."""
    lib = _libbpf()
    count = c_uint32(_MOST_PROGRAMS)
    numbers = (c_uint32 * _MOST_PROGRAMS)()
    if lib.bpf_prog_query(cgroup_fd, hook, 0, None, numbers, byref(count)) != 0:
        raise BpfError(f"cannot ask for the programs of a cgroup: {_hint(ctypes.get_errno())}")
    names = []
    for number in numbers[: count.value]:
        fd = lib.bpf_prog_get_fd_by_id(number)
        if fd < 0:
            continue  # gone meanwhile
        info, size = ctypes.create_string_buffer(_INFO_NAME.stop), c_uint32(_INFO_NAME.stop)
        if lib.bpf_obj_get_info_by_fd(fd, info, byref(size)) != 0:
            info.raw = bytes(_INFO_NAME.stop)
        os.close(fd)
        names.append(info.raw[_INFO_NAME].rstrip(b"\0").decode())
    return names


def fd_of_map(number: int) -> int | None:
    """A descriptor of a map that somebody else holds; None if nobody does."""
    fd: int = _libbpf().bpf_map_get_fd_by_id(number)
    return fd if fd >= 0 else None


def map_from_fd(fd: int, name: str, key_size: int, value_size: int) -> Map:
    """A map that another process made and handed over."""
    return Map(_libbpf(), name, fd, key_size, value_size)

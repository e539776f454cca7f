"""Where the bytes of a connection are that does not move any more, for the torture's client to say before it gives up."""

import json
import socket
import subprocess

SO_COOKIE = 57  # asm-generic/socket.h; Python has no name for it


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{error!r}\n"
    return done.stdout or done.stderr


def cookie(sock: socket.socket) -> int:
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), "little")


def whereabouts(cookie: int, admin: str) -> str:
    """What the agent (``admin``: its socket), the kernel path's maps and the sockets say of a client's connection."""
    told = [f"cookie {cookie:x}, {cookie}"]
    listed = _run("curl", "-s", "--max-time", "10", "--unix-socket", admin, "http://localhost/connections")
    try:
        known = [entry for entry in json.loads(listed)["connections"] if entry["id"] == f"{cookie:x}"]
    except ValueError:
        known = [listed]
    told.append(f"agent: {known}")
    source = known[0]["source"] if known and isinstance(known[0], dict) else ""
    told += _of_maps(cookie)
    # Every leg of it: the client's end, the agent's two, and the server's, with queues (-m), timers (-o) and sequences (-i).
    legs = [" ".join(line.split()) for line in _run("ss", "-tanopiem", "-O").splitlines()]
    port = source.rpartition(":")[2]
    ends = [line for line in legs if port and f":{port} " in line]
    told.append("sockets of the client's connection:\n  " + "\n  ".join(ends))
    told.append("sockets with something in their queues:\n  " + "\n  ".join([line for line in legs if _waits(line)][:20]))
    return "\n".join(told)


def _waits(line: str) -> bool:
    fields = line.split()
    return len(fields) > 2 and fields[0] == "ESTAB" and fields[1:3] != ["0", "0"]


def _of_maps(cookie: int) -> list[str]:
    """The flow of a client's socket, who has its wheel, and what the programs know of its ends."""
    try:
        flows = json.loads(_run("bpftool", "-j", "map", "dump", "name", "flows"))
        numbers = [entry["formatted"]["key"] for entry in flows if entry["formatted"]["value"]["client"] == cookie]
    except (ValueError, KeyError, TypeError) as error:
        return [f"no flows: {error!r}"]
    told = [f"flows: {[entry['formatted'] for entry in flows if entry['formatted']['key'] in numbers]}"]
    for number in numbers:
        key = [str(byte) for byte in number.to_bytes(4, "little")]
        told += [f"{name}: {_run('bpftool', 'map', 'lookup', 'name', name, 'key', *key)[:800]}" for name in ("ends", "calls")]
    return told

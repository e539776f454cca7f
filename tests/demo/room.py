"""A room of its own for the demo: namespaces for cgroups, network, mounts and processes.

The policies can so be the example files as they are: the room's /sluice/orders and its port 8080 are not the machine's, and
the agent's hooks sit on the room's cgroup, not on the machine's root. When the room's first process ends, the kernel
ends all others.
"""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from proxy.workloads import cgroup2_mount

# What the examples' clients call the servers of this host.
HOSTS = ("orders", "payments", "wiki")
UNSHARE = ("unshare", "--cgroup", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
# How long the story may take to clean up after Ctrl-C before the room is closed over it (seconds).
LAST_ORDERS = 10.0


def play(root: Path, *arguments: str) -> int:
    """Run ``tests.demo.inside`` in a room whose cgroup tree is ``root``; its exit code."""
    enter_cgroup = ["sh", "-c", 'echo 0 > "$0" && exec "$@"', str(root / "cgroup.procs")]
    story = [sys.executable, "-m", "tests.demo.inside", str(root), *arguments]
    # A proxy that the user's shell asks for is not reachable from in here.
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    process = subprocess.Popen([*enter_cgroup, *UNSHARE, *story], env=environment)
    try:
        return process.wait()
    except KeyboardInterrupt:
        # The terminal has told the story as well; give it time to end the agent in order.
        with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            process.wait(LAST_ORDERS)
        return 128 + signal.SIGINT
    finally:
        process.kill()
        process.wait()


def furnish(root: Path, folder: Path) -> None:
    """Inside: make ``root`` the cgroup tree, put up the loopback interface, and give the servers their names."""
    _run("mount", "--bind", str(root), str(cgroup2_mount()))
    _run("ip", "link", "set", "lo", "up")
    hosts = folder / "hosts"
    hosts.write_text("127.0.0.1 localhost " + " ".join(HOSTS) + "\n")
    _run("mount", "--bind", str(hosts), "/etc/hosts")


def wire(pid: int, here: str, there: str) -> None:
    """Inside: a cable from this network namespace to that of process ``pid``, with an address at each end."""
    _run("ip", "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", str(pid))
    for enter, address in ((), here), (("nsenter", "--net", "--target", str(pid)), there):
        _run(*enter, "ip", "address", "add", f"{address}/24", "dev", "cable")
        _run(*enter, "ip", "link", "set", "cable", "up")


def _run(*command: str) -> None:
    subprocess.run(command, check=True)

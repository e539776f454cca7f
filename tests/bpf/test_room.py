"""The rooms in which ``make test`` runs its parts."""

import json
import subprocess
import sys

from proxy.workloads import cgroup2_mount
from tests import room
from tests.harness import eventually

INSIDE = """
import json, os, socket
from proxy.workloads import cgroup2_mount
own = [line for line in open("/proc/self/cgroup").read().splitlines() if line.startswith("0::")]
cards = sorted(name for _, name in socket.if_nameindex())
inhabitants = map(int, open(cgroup2_mount() / "cgroup.procs"))
print(json.dumps([own, cards, os.getpid() in inhabitants]))
"""
MAKE = """
import os
from tests import room
making = room.cgroup("sluice-test-room")
making.__enter__()
print(os.getpid(), flush=True)
os._exit(1)
"""
LEAVE = """
mkdir -p $0/sluice/left
sleep 1000 >/dev/null 2>&1 &
echo $! >$0/sluice/left/cgroup.procs
echo $!
"""


def test_a_room_has_a_cgroup_tree_and_a_network_of_its_own() -> None:
    with room.cgroup("sluice-test-room") as root:
        said = subprocess.run(room.entrance(root, sys.executable, "-c", INSIDE), check=True, capture_output=True).stdout
    assert json.loads(said) == [["0::/"], ["cable", "eth0", "lo"], True]


def test_what_is_left_in_a_room_ends_with_it() -> None:
    with room.cgroup("sluice-test-room") as root:
        command = room.entrance(root, "sh", "-c", LEAVE, str(cgroup2_mount()))
        left = int(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)
        assert _runs(left)
    assert not root.exists()
    eventually(lambda: not _runs(left), "the end of what was left")


def test_a_room_whose_maker_was_killed_is_cleared_by_the_next() -> None:
    maker = subprocess.run([sys.executable, "-c", MAKE], capture_output=True, text=True).stdout.strip()
    left = cgroup2_mount() / f"sluice-test-room-{maker}"
    assert left.exists()
    with room.cgroup("sluice-test-room"):
        assert not left.exists()


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False

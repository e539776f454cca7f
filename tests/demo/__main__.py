"""``python -m tests.demo``: makes a room, plays the story in it, keeps the records, and takes the room away."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from proxy.workloads import cgroup2_mount
from tests.demo import room
from tests.harness import ROOT, command_exists
from tests.requirements import missing_for_bpf
from tests.room import cgroup

# What the last demo left to look at.
KEPT = ROOT / ".build" / "demo"
COMMANDS = ("nginx", "curl", "ip", "unshare", "nsenter", "mount")


def missing() -> str | None:
    """Why the demo cannot run here; None if it can."""
    reason = missing_for_bpf()
    if reason is not None:
        return reason
    if not os.access(cgroup2_mount(), os.W_OK):
        return f"{cgroup2_mount()} cannot be written"
    absent = [name for name in COMMANDS if not command_exists(name)]
    if absent:
        return f"not installed: {', '.join(absent)}"
    attempt = subprocess.run([*room.UNSHARE, "true"], capture_output=True, text=True)
    if attempt.returncode != 0:
        return f"no namespaces of its own ({attempt.stderr.strip()}); a container must be privileged"
    return None


def keep(folder: Path) -> None:
    """Keep the records and the logs of this demo instead of the last one's."""
    shutil.rmtree(KEPT, ignore_errors=True)
    KEPT.mkdir(parents=True)
    for file in (*folder.glob("*.jsonl"), *folder.glob("*.log")):
        shutil.copy(file, KEPT)


def main() -> int:
    reason = missing()
    if reason is not None:
        print(f"demo: cannot run here: {reason}", file=sys.stderr)
        return 1
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="sluice-demo-") as name, cgroup("sluice-demo") as root:
        try:
            code = room.play(root, name)
        finally:
            keep(Path(name))
    kept = KEPT.relative_to(ROOT)
    if code == 0:
        print(f"""
The calls     .venv/bin/sluice observe --file {kept}/audit.jsonl
The reason    .venv/bin/sluice explain -f policies/examples --from web --to orders 'GET /admin'
The policies  policies/examples/*.yaml""")
    elif code == 128 + signal.SIGINT:
        print("\ndemo: interrupted", file=sys.stderr)
    else:
        print(f"\nThe agent's log, the servers' logs and the records are in {kept}/", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

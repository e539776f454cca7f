"""Records to write, and a disk that is small enough to fill."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.audit.record import AuditRecord, Party, now

SOAK = os.environ.get("SLUICE_SOAK") == "1"


def record(number: int = 0, **facts: Any) -> AuditRecord:
    """A typical record; ``facts`` replace or add to its fields."""
    typical: dict[str, Any] = {
        "time": now(),
        "id": f"{os.getpid()}.{number}",
        "node": "node-1",
        "verdict": "ALLOWED",
        "subject": Party(workload="orders", labels={"app": "orders"}),
        "peer": Party(workload="web", labels={"app": "web"}, address="10.0.0.5"),
        "direction": "ingress",
        "source": "10.0.0.5:40000",
        "destination": "10.0.0.7:8080",
        "protocol": "http/1.1",
        "method": "GET",
        "path": "/orders/1",
        "status": 200,
        "via": "relay",
    }
    return AuditRecord(**(typical | facts))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB, mounted for this test."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "sluice-test", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        reason = f"cannot mount a small tmpfs: {mounted.stderr.strip()}"
        if os.environ.get("SLUICE_REQUIRE_BPF") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)

"""Facts about the machine that a reader needs to judge the figures."""

import os
import platform
import time
from pathlib import Path

from bench.processes import TICKS, Service

BUSY_SAMPLE = 1.0  # seconds


def facts() -> dict[str, object]:
    """Kernel, CPU, memory, and how busy the machine is before anything is started (in percent of all CPUs)."""
    others = Others()
    time.sleep(BUSY_SAMPLE)
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name")), platform.machine())
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu": model,
        "cores": os.cpu_count(),
        "cpus_allowed": sorted(os.sched_getaffinity(0)),
        "memory_mib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20,
        "python": platform.python_version(),
        "busy_before_percent": round(others.percent(), 1),
    }


class Others:
    """Measures what everybody else takes of all CPUs, from construction on: the disturbance of a measurement.

    `ours` are processes that live on and do not count as others.
    """

    def __init__(self, *ours: Service) -> None:
        self._ours = ours
        self._cpus = _cpu_ticks()
        self._own = self._own_ticks()

    def percent(self) -> float:
        """Share of all CPU time that went to others. All other children started since must have been waited for."""
        spent = [now - before for now, before in zip(_cpu_ticks(), self._cpus, strict=True)]
        idle, iowait = spent[3:5]
        # Interrupts count as busy: those of loopback TCP run in, and are charged to, the process that sends.
        busy = sum(spent) - idle - iowait
        return max(0.0, 100 * (busy - (self._own_ticks() - self._own)) / max(1, sum(spent)))

    def _own_ticks(self) -> float:
        """CPU time of this process, of all descendants that were waited for, and of `ours`."""
        return (sum(os.times()[:4]) + sum(process.cpu_seconds() for process in self._ours)) * TICKS


def _cpu_ticks() -> list[int]:
    """user nice system idle iowait irq softirq steal of all CPUs (proc(5), /proc/stat)."""
    return [int(ticks) for ticks in Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]]

"""wrk as a load generator: its command line and what its report says."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from bench.processes import BenchError, run_client

START_UP = 10.0  # seconds that a client may need around its measuring time, on a busy machine
MICROSECONDS = {"us": 1.0, "ms": 1e3, "s": 1e6, "m": 60e6}


@dataclass(frozen=True)
class Report:
    """One run of wrk. Latencies are in microseconds."""

    requests: int
    seconds: float
    p50: float
    p99: float
    failed: int  # answers that were not 2xx or 3xx
    socket_errors: int

    @property
    def rate(self) -> float:
        """Requests per second, over the time that wrk measured itself."""
        return self.requests / self.seconds


def run(prefix: Sequence[str], url: str, connections: int, seconds: int, options: Sequence[str] = ()) -> Report:
    """Load `url` with one thread for `seconds`. A run with refused or failed requests is a BenchError: it measures nothing."""
    command = [*prefix, "wrk", "--latency", "-t1", f"-c{connections}", f"-d{seconds}s", *options, url]
    report = parse(run_client(command, seconds + START_UP))
    if not report.requests or report.failed or report.socket_errors:
        raise BenchError(
            f"{report.requests} requests, {report.failed} not 2xx, {report.socket_errors} socket errors: {' '.join(command)}"
        )
    return report


def parse(text: str) -> Report:
    """Read what `wrk --latency` prints. BenchError when a figure is missing."""
    requests, seconds = _search(r"(\d+) requests in ([\d.]+(?:us|ms|s|m))", text)
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    return Report(
        requests=int(requests),
        seconds=_microseconds(seconds) / 1e6,
        p50=_microseconds(_search(r"\n\s+50%\s+(\S+)", text)[0]),
        p99=_microseconds(_search(r"\n\s+99%\s+(\S+)", text)[0]),
        failed=int(failed[1]) if failed else 0,
        socket_errors=sum(map(int, errors.groups())) if errors else 0,
    )


def _search(pattern: str, text: str) -> tuple[str, ...]:
    found = re.search(pattern, text)
    if not found:
        raise BenchError(f"wrk printed no '{pattern}': {text.strip()[-300:]}")
    return found.groups()


def _microseconds(text: str) -> float:
    """'1.25ms' to 1250.0."""
    number, unit = _search(r"^([\d.]+)([a-z]+)$", text)
    return float(number) * MICROSECONDS[unit]

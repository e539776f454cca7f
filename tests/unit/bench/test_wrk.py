"""What wrk prints is read right, or not at all."""

import pytest

from bench import wrk
from bench.processes import BenchError

REPORT = """Running 2s test @ http://127.0.0.1:18080/orders/1
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.10ms  250.00us   9.31ms   86.33%
    Req/Sec    46.91k     1.29k   49.02k    65.00%
  Latency Distribution
     50%   {p50}
     75%    1.21ms
     90%    1.40ms
     99%   {p99}
  93317 requests in {duration}, 14.95MB read
{errors}Requests/sec:  46658.50
Transfer/sec:      7.47MB
"""


def report(p50: str = "1.02ms", p99: str = "1.67ms", duration: str = "2.00s", errors: str = "") -> str:
    return REPORT.format(p50=p50, p99=p99, duration=duration, errors=errors)


def test_the_rate_is_requests_over_the_time_that_wrk_measured() -> None:
    parsed = wrk.parse(report(duration="2.10s"))
    assert parsed.requests == 93317
    assert parsed.rate == pytest.approx(93317 / 2.1)


@pytest.mark.parametrize(("text", "microseconds"), [("19.00us", 19), ("1.02ms", 1020), ("1.50s", 1.5e6), ("1.00m", 60e6)])
def test_latencies_become_microseconds_whatever_their_unit(text: str, microseconds: float) -> None:
    parsed = wrk.parse(report(p50=text, p99=text))
    assert parsed.p50 == pytest.approx(microseconds)
    assert parsed.p99 == pytest.approx(microseconds)


def test_a_clean_report_has_no_errors() -> None:
    parsed = wrk.parse(report())
    assert (parsed.failed, parsed.socket_errors) == (0, 0)


def test_refused_requests_and_socket_errors_of_every_kind_are_counted() -> None:
    errors = "  Socket errors: connect 1, read 20, write 300, timeout 4000\n  Non-2xx or 3xx responses: 7\n"
    parsed = wrk.parse(report(errors=errors))
    assert (parsed.failed, parsed.socket_errors) == (7, 4321)


@pytest.mark.parametrize("text", ["", "unable to connect to 127.0.0.1:18080 Connection refused\n"])
def test_anything_else_is_an_error_and_not_a_zero(text: str) -> None:
    with pytest.raises(BenchError):
        wrk.parse(text)


def test_a_report_without_percentiles_is_an_error() -> None:
    with pytest.raises(BenchError):
        wrk.parse(report().replace("99%", ""))

"""One call, one record: under load, through rotations, with a full disk and with a reader that is slow."""

import collections
import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients import Witness, hammer_calls, hammering
from tests.harness import SLUICE, Server, Sluice, Workload, eventually, http_policy, read_reply

MakeServer = Callable[..., Server]
MakeSluice = Callable[..., Sluice]

CALLS = 100_000 if os.environ.get("SLUICE_SOAK") == "1" else 8_000
# Records of one workload's calls for which there is room while they cannot be written, with so little memory (MiB); of some
# thousand more the calls wait (proxy/audit/places.py).
QUEUE = 4096
MEMORY = "64"


def documents(web: Workload, orders: Workload, port: int) -> str:
    return web.document() + orders.document() + http_policy(orders, web, port, '[{method: GET, path: "/ok(/.*)?"}]')


def lines(*files: Path) -> list[dict[str, Any]]:
    """The records of all files; every line must be whole."""
    return [json.loads(line) for file in files for line in file.read_bytes().split(b"\n")[:-1]]


def verdicts(records: list[dict[str, Any]]) -> collections.Counter[tuple[str, str]]:
    return collections.Counter((record["verdict"], record["path"].split("/")[1]) for record in records)


@pytest.mark.timeout(600)
def test_every_call_has_exactly_one_record(web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice) -> None:
    server = serve(orders)
    agent = sluice(documents(web, orders, server.port))
    result = hammer_calls(web, server.port, CALLS, "/ok", "/ok", "/ok", "/denied", connections=8)
    assert (result["completed"], result["errors"]) == (CALLS, {})
    eventually(lambda: agent.audit.read_bytes().count(b"\n") >= CALLS, "all records")
    time.sleep(0.12)
    records = lines(agent.audit)
    assert len(records) == CALLS
    assert len({record["id"] for record in records}) == CALLS
    assert verdicts(records) == {
        ("ALLOWED", "ok"): result["statuses"]["/ok 200"],
        ("DENIED", "denied"): result["statuses"]["/denied 403"],
    }
    assert agent.audit.read_bytes().endswith(b"}\n")


def test_rotation_by_rename_and_sighup_under_load_loses_no_record(
    web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice
) -> None:
    witness = Witness()
    server = serve(orders, witness.serve)
    agent = sluice(documents(web, orders, server.port))
    assert agent.process is not None
    files = [agent.audit]
    with hammering(web, server.port, "/ok", "/denied", per_connection=30) as hammer:
        for number in range(3):
            before = len(witness.seen)
            eventually(lambda before=before: len(witness.seen) > before + 100, "calls")
            files.append(agent.audit.with_suffix(f".{number}"))
            agent.audit.rename(files[-1])
            agent.process.send_signal(signal.SIGHUP)
            eventually(lambda: agent.audit.exists() and agent.audit.stat().st_size, "records in the new file")
        result = hammer.stop()
    assert result["errors"] == {}
    eventually(lambda: len(lines(*files)) >= result["completed"], "all records")
    records = lines(*files)
    assert len(records) == len({record["id"] for record in records}) == result["completed"]
    assert all(lines(file) for file in files), "every file has got some"


@pytest.mark.parametrize("how", ["moved", "replaced", "removed"])
def test_a_file_that_goes_without_a_signal_is_followed_under_load_by_all_workers(
    how: str, web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice
) -> None:
    witness = Witness()
    server = serve(orders, witness.serve)
    agent = sluice(documents(web, orders, server.port), "--workers", "2")
    files = [agent.audit]
    with hammering(web, server.port, "/ok", "/denied", per_connection=30) as hammer:
        for number in range(3):
            before = len(witness.seen)
            eventually(lambda before=before: len(witness.seen) > before + 100, "calls")
            files.append(agent.audit.with_suffix(f".{number}"))
            if how == "removed":
                os.link(agent.audit, files[-1])  # so that its records can be counted
                agent.audit.unlink()
            else:
                agent.audit.rename(files[-1])
                if how == "replaced":
                    agent.audit.touch(0o600)
            eventually(lambda: agent.audit.exists() and agent.audit.stat().st_size, "records in the new file")
        result = hammer.stop()
    assert result["errors"] == {}
    eventually(lambda: len(lines(*files)) >= result["completed"], "all records")
    records = lines(*files)
    assert len(records) == len({record["id"] for record in records}) == result["completed"]
    assert agent.metric("sluice_audit_moved_total") >= 3
    assert agent.get("/healthz")["ok"] is True


def test_without_a_folder_for_its_file_the_agent_says_so_and_goes_on_when_it_is_there_again(
    web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice, tmp_path: Path
) -> None:
    server = serve(orders)
    folder = tmp_path / "log"
    agent = sluice(documents(web, orders, server.port), "--audit", str(folder / "audit.jsonl"))
    with web.connect(server.port) as client:
        client.sendall(b"GET /ok HTTP/1.1\r\nhost: orders\r\n\r\n")
        assert read_reply(client)[0] == 200
        eventually(lambda: (folder / "audit.jsonl").stat().st_size, "its record")
        shutil.rmtree(folder)
        trouble = eventually(lambda: agent.get("/healthz")["checks"]["audit"].get("detail"), "the trouble")
        assert "No such file" in trouble or "was removed" in trouble
        client.sendall(b"GET /ok HTTP/1.1\r\nhost: orders\r\n\r\n")
        assert read_reply(client)[0] == 200, "as long as there is room for its record"
        folder.mkdir()
        eventually(lambda: agent.get("/healthz")["ok"], "health")
        eventually(lambda: len(lines(folder / "audit.jsonl")) == 1, "the record")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_makes_calls_wait_then_denies_them_and_loses_no_record(
    web: Workload, orders: Workload, serve: MakeServer, tmp_path: Path, small_disk: Path
) -> None:
    witness = Witness()
    server = serve(orders, witness.serve)
    agent = Sluice(
        tmp_path, documents(web, orders, server.port), "--audit", str(small_disk / "audit.jsonl"), "--memory-budget", MEMORY
    )
    agent.audit = small_disk / "audit.jsonl"
    ballast = small_disk / "ballast"
    with agent:
        ballast.write_bytes(b"\0" * ((1 << 20) - 64 * 1024))
        filled = hammer_calls(web, server.port, QUEUE, "/ok", connections=8)
        assert (filled["statuses"], filled["errors"]) == ({"/ok 200": QUEUE}, {})
        with hammering(web, server.port, "/ok", connections=2) as hammer:
            eventually(lambda: waits(agent), "calls wait for room")
            statuses = [0]
            while statuses[-1] != 403:  # a connection that has made no call yet gets one of the last places
                allowed = len(witness.seen)
                with web.connect(server.port) as client:
                    client.sendall(b"GET /ok/patient HTTP/1.1\r\nhost: orders\r\n\r\n")
                    statuses.append(read_reply(client)[0])
                assert len(statuses) < QUEUE
            assert len(witness.seen) == allowed, "no call is made without room for its record"
            health = agent.get("/healthz")
            assert health["ok"] is False
            assert "No space left" in health["checks"]["audit"]["detail"]
            assert status_code(agent, "/healthz") == 503
            subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
            eventually(lambda: agent.get("/healthz")["ok"], "health after the disk has room")
            before = len(witness.seen)
            eventually(lambda: len(witness.seen) > before + 20, "calls are made again")
            result = hammer.stop()
        assert result["errors"] == {}
        completed = QUEUE + result["completed"] + len(statuses) - 1
        eventually(lambda: len(lines(agent.audit)) >= completed, "every record")
        records = lines(agent.audit)
        assert len(records) == len({record["id"] for record in records}) == completed
        denied = [record for record in records if record["verdict"] == "DENIED"]
        assert {record["reason"] for record in denied} == {"audit-unavailable"}
        assert "/ok/patient" in {record["path"] for record in denied}
        assert len(witness.seen) == len(records) - len(denied)


def waits(agent: Sluice) -> bool:
    return agent.metric('sluice_limits_total{limit="AUDIT_QUEUE"}') > 0


def status_code(agent: Sluice, path: str) -> int:
    command = [
        "curl",
        "-s",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        "--unix-socket",
        str(agent.admin),
        f"http://localhost{path}",
    ]
    return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


def test_records_on_standard_output_wait_for_a_slow_reader(
    web: Workload, orders: Workload, serve: MakeServer, tmp_path: Path
) -> None:
    """A pipe holds 64 KiB, some 150 records: the rest waits in the agent."""
    server = serve(orders)
    agent = Sluice(tmp_path, documents(web, orders, server.port))
    command = [SLUICE, "run", "-f", str(agent.policies), "--audit", "-", "--run-dir", str(tmp_path / "run")]
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(agent.log.open("wb"))
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
        stack.callback(agent.end_guard)
        stack.callback(process.kill)
        eventually(lambda: b"ready" in agent.log.read_bytes(), "the agent's ready line")
        result = hammer_calls(web, server.port, 2000, "/ok", "/denied")
        assert (result["completed"], result["errors"]) == (2000, {})
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 0
    records = [json.loads(line) for line in output.splitlines()]
    assert len(records) == len({record["id"] for record in records}) == 2000


def test_records_that_cannot_be_written_at_the_end_are_counted_and_the_exit_code_tells(
    web: Workload, orders: Workload, serve: MakeServer, tmp_path: Path, small_disk: Path
) -> None:
    server = serve(orders)
    agent = Sluice(tmp_path, documents(web, orders, server.port), "--audit", str(small_disk / "audit.jsonl"))
    with agent:
        (small_disk / "ballast").write_bytes(b"\0" * (1 << 20))
        assert hammer_calls(web, server.port, 20, "/ok")["statuses"] == {"/ok 200": 20}
        assert agent.stop() == 1
    assert "20 records could not be written" in agent.log.read_text()


def test_listed_headers_are_recorded_and_a_query_is_redacted_where_policy_says_so(
    web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice
) -> None:
    server = serve(orders)
    policy = http_policy(orders, web, server.port, '[{method: GET, path: "/ok.*"}]', kind="ApiPolicy")
    policy = policy.replace("spec:\n", "spec:\n  redactQuery: true\n")
    agent = sluice(web.document() + orders.document() + policy, "--record-header", "X-Request-Id")
    with web.connect(server.port) as client:
        head = "host: orders\r\nx-request-id: 7\r\nX-REQUEST-ID: 8\r\nauthorization: Bearer secret-1\r\n\r\n"
        client.sendall(f"GET /ok?token=secret-2 HTTP/1.1\r\n{head}".encode())
        assert read_reply(client)[0] == 200
        client.sendall(f"GET /denied?token=secret-3 HTTP/1.1\r\n{head}".encode())
        assert read_reply(client)[0] == 403
    allowed, denied = agent.wait_records(2)
    assert allowed["headers"] == denied["headers"] == {"x-request-id": "7, 8"}
    assert (allowed["path"].partition("?")[0], denied["path"].partition("?")[0]) == ("/ok", "/denied")
    assert "secret" not in agent.audit.read_text()

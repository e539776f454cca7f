"""A change of policy: it loses no call, cuts no body, reaches open connections, and a bad one changes nothing."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients import Witness, hammering
from tests.harness import SLUICE, Server, Sluice, Workload, answer_http, eventually, http_policy, read_reply

MakeServer = Callable[..., Server]
MakeSluice = Callable[..., Sluice]
about_files = pytest.mark.only("relay", "about reading documents, before any datapath")

ALLOW_A = '[{method: GET, path: "/a(/.*)?"}]'
ALLOW_B = '[{method: GET, path: "/b(/.*)?"}]'


def documents(web: Workload, orders: Workload, port: int, rules: str = ALLOW_A) -> str:
    return web.document() + orders.document() + http_policy(orders, web, port, rules)


def call(client: socket.socket, path: str) -> int:
    client.sendall(f"GET {path} HTTP/1.1\r\nhost: orders\r\n\r\n".encode())
    return read_reply(client)[0]


def hang_up(agent: Sluice) -> None:
    assert agent.process is not None
    agent.process.send_signal(signal.SIGHUP)


def change(agent: Sluice, text: str) -> None:
    """Write new documents and ask for them at once, instead of waiting until the agent looks."""
    before = agent.generation()
    agent.write(text)
    hang_up(agent)
    eventually(lambda: agent.generation() > before, "the new generation")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_change_of_policy_under_load_loses_no_call_and_every_verdict_is_its_generations(
    workers: str, web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice
) -> None:
    witness = Witness()
    server = serve(orders, witness.serve)
    agent = sluice(documents(web, orders, server.port), "--workers", workers)
    allowed = {1: "/a"}
    with hammering(web, server.port, "/a", "/b", per_connection=20) as of_web:
        with hammering(None, server.port, "/host", connections=2, per_connection=1) as of_host:
            for turn in range(4):
                before, path, rules = (
                    (len(witness.seen), "/b", ALLOW_B) if turn % 2 == 0 else (len(witness.seen), "/a", ALLOW_A)
                )
                generation = agent.generation()
                agent.write(documents(web, orders, server.port, rules))
                if turn >= 2:
                    hang_up(agent)
                eventually(lambda generation=generation: agent.generation() > generation, "the new generation")
                allowed |= dict.fromkeys(range(generation + 1, agent.generation() + 1), path)
                eventually(lambda before=before: len(witness.seen) > before + 30, "calls under the new policy")
            host = of_host.stop()
        result = of_web.stop()
    assert result["errors"] == {}
    assert set(result["statuses"]) == {"/a 200", "/a 403", "/b 200", "/b 403"}
    records = agent.wait_records(result["completed"])
    assert len({record["id"] for record in records}) == result["completed"]
    for record in records:
        expected = "ALLOWED" if record["path"].startswith(allowed[record["generation"]]) else "DENIED"
        assert record["verdict"] == expected, record
    assert host["completed"] == 0
    assert witness.paths("/host") == [], "who may not call may not call while tables change"


def test_an_open_connection_is_judged_by_the_new_policy_at_its_next_call(
    web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice
) -> None:
    server = serve(orders)
    agent = sluice(documents(web, orders, server.port))
    with web.connect(server.port) as client:
        assert (call(client, "/a"), call(client, "/b")) == (200, 403)
        agent.reload(documents(web, orders, server.port, ALLOW_B))
        assert (call(client, "/a"), call(client, "/b")) == (403, 200)


def test_a_change_of_policy_does_not_cut_a_long_body(
    web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice
) -> None:
    size, piece = 32 << 20, 1 << 20
    begun, changed = threading.Event(), threading.Event()

    def long_body(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        for number in range(size // piece):
            connection.sendall(bytes([number]) * piece)
            if number == 4:
                begun.set()
                changed.wait(30)
        answer_http(connection)

    server = serve(orders, long_body)
    agent = sluice(documents(web, orders, server.port))
    with web.connect(server.port) as client:
        client.sendall(b"GET /a HTTP/1.1\r\nhost: orders\r\n\r\n")
        received = bytearray()
        while len(received) < piece:
            received += client.recv(1 << 20)
        assert begun.wait(15)
        change(agent, documents(web, orders, server.port, ALLOW_B))
        changed.set()
        head_end = received.index(b"\r\n\r\n") + 4
        while len(received) < head_end + size:
            data = client.recv(1 << 20)
            assert data, "the body was cut"
            received += data
        assert received[head_end:] == b"".join(bytes([number]) * piece for number in range(size // piece))
        assert call(client, "/a") == 403


BAD = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: broken}\nspec:\n  endpointSelektor: {}\n"


def test_a_bad_policy_at_reload_keeps_the_old_generation_and_says_so_everywhere(
    web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice
) -> None:
    server = serve(orders)
    good = documents(web, orders, server.port)
    agent = sluice(good)
    agent.write(good + BAD)
    hang_up(agent)
    error = eventually(lambda: agent.get("/policy")["lastReloadError"], "the error")
    line = (good + BAD).splitlines().index("  endpointSelektor: {}") + 1
    where = f"documents.yaml:{line}:3"
    assert where in error
    assert "reload failed, generation 1 stays in force" in agent.log.read_text()
    assert where in agent.log.read_text()
    health = agent.get("/healthz")
    assert health["ok"] is False
    assert where in health["checks"]["policy"]["detail"]
    assert agent.generation() == 1
    with web.connect(server.port) as client:
        assert (call(client, "/a"), call(client, "/b")) == (200, 403)
    change(agent, good)
    assert agent.get("/healthz")["ok"] is True
    assert agent.get("/policy")["lastReloadError"] is None


@about_files
def test_a_bad_policy_at_the_start_is_refused_with_file_line_and_column(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(BAD)
    command = [SLUICE, "run", "-f", str(file), "--audit", "-", "--run-dir", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert re.search(rf"{re.escape(str(file))}:5:3\b", done.stderr)
    assert "Traceback" not in done.stderr


def test_a_policy_that_does_not_fit_the_kernels_tables_keeps_the_old_generation(
    web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice
) -> None:
    server = serve(orders)
    good = documents(web, orders, server.port)
    agent = sluice(good)
    cidrs = "".join(f"    - 10.{n >> 8}.{n & 255}.0/25\n" for n in range(17_000))
    huge = (
        f"apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: huge}}\n"
        f"spec:\n  endpointSelector: {{matchLabels: {{app: {web.name}}}}}\n  egress:\n  - toCIDR:\n{cidrs}"
    )
    agent.write(good + huge)
    hang_up(agent)
    error = eventually(lambda: agent.get("/policy")["lastReloadError"], "the error", patience=60)
    assert "MAX_ADDRESSES" in error
    with web.connect(server.port) as client:
        assert (call(client, "/a"), call(client, "/b")) == (200, 403)
    change(agent, documents(web, orders, server.port, ALLOW_B))
    with web.connect(server.port) as client:
        assert (call(client, "/a"), call(client, "/b")) == (403, 200)


def test_ten_thousand_rules_are_loaded_without_a_refused_connection(
    web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice
) -> None:
    """The heartbeat goes on while a large policy is read: a stale one would refuse."""
    server = serve(orders)
    agent = sluice(documents(web, orders, server.port))
    many = ", ".join(f'{{method: GET, path: "/r{number}/[0-9]+"}}' for number in range(10_000))
    with hammering(web, server.port, "/a", per_connection=1) as hammer:
        change(agent, documents(web, orders, server.port, f'[{many}, {{method: GET, path: "/a/.*"}}]'))
        with web.connect(server.port) as client:
            assert (call(client, "/r9999/1"), call(client, "/r10000/1")) == (200, 403)
        result = hammer.stop()
    assert result["errors"] == {}
    assert set(result["statuses"]) == {"/a 200"}
    assert agent.metric('sluice_connects_total{outcome="stale_refused"}') == 0


def test_a_storm_of_sighups_is_one_piece_of_work(
    web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice
) -> None:
    server = serve(orders)
    agent = sluice(documents(web, orders, server.port))
    for _ in range(500):
        hang_up(agent)
    change(agent, documents(web, orders, server.port, ALLOW_B))
    with web.connect(server.port) as client:
        eventually(lambda: call(client, "/b") == 200, "the last policy")
    assert agent.generation() < 50
    assert agent.get("/healthz")["ok"] is True


@about_files
def test_a_folder_of_policies_may_vanish_and_come_back(
    web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice
) -> None:
    server = serve(orders)
    agent = sluice(documents(web, orders, server.port))
    away = agent.policies.with_name("away")
    agent.policies.rename(away)
    eventually(lambda: agent.get("/policy")["lastReloadError"], "the error")
    with web.connect(server.port) as client:
        assert (call(client, "/a"), call(client, "/b")) == (200, 403)
    (away / "documents.yaml").write_text(documents(web, orders, server.port, ALLOW_B))
    away.rename(agent.policies)
    eventually(lambda: agent.get("/policy")["lastReloadError"] is None, "the folder's return")
    with web.connect(server.port) as client:
        assert (call(client, "/a"), call(client, "/b")) == (403, 200)


@about_files
def test_files_that_are_no_documents_do_not_make_a_generation(
    web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice
) -> None:
    server = serve(orders)
    agent = sluice(documents(web, orders, server.port))
    for name in ("README.md", ".documents.yaml.swp", ".hidden.yaml", "documents.yaml~"):
        (agent.policies / name).write_text("this is no policy: [")
    time.sleep(1.5)  # longer than the agent's look
    assert agent.generation() == 1
    assert agent.get("/healthz")["ok"] is True


@about_files
def test_a_file_that_is_still_being_written_is_not_read(
    web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice
) -> None:
    """The first documents of these are a valid set without the policy: read too early, it would open everything."""
    server = serve(orders)
    agent = sluice(documents(web, orders, server.port))
    whole = documents(web, orders, server.port, ALLOW_B)
    step = len(whole) // 40 + 1
    with (agent.policies / "documents.yaml").open("w") as file, web.connect(server.port) as client:
        for start in range(0, len(whole), step):
            file.write(whole[start : start + step])
            file.flush()
            assert (call(client, "/a"), call(client, "/b")) == (200, 403)
            time.sleep(0.05)
    eventually(lambda: agent.generation() > 1, "the new generation")
    assert agent.generation() == 2
    assert "failed" not in agent.log.read_text()


@about_files
@pytest.mark.parametrize("asked", [False, True], ids=["noticed", "asked for by SIGHUP"])
def test_half_a_file_is_never_in_force_however_slowly_the_rest_comes(
    asked: bool, web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice
) -> None:
    """Its first half is a valid set that has no policy: all would be open while its writer rests."""
    server = serve(orders)
    agent = sluice(documents(web, orders, server.port))
    half = web.document() + orders.document()
    with (agent.policies / "documents.yaml").open("w") as file, web.connect(server.port) as client:
        file.write(half)
        file.flush()
        until = time.monotonic() + 2.5
        while time.monotonic() < until:
            if asked:
                hang_up(agent)
            assert (call(client, "/a"), call(client, "/b")) == (200, 403)
            time.sleep(0.1)
        file.write(http_policy(orders, web, server.port, ALLOW_B))
    eventually(lambda: agent.generation() > 1, "the new generation")
    with web.connect(server.port) as client:
        assert (call(client, "/a"), call(client, "/b")) == (403, 200)
    assert "failed" not in agent.log.read_text()


@about_files
def test_a_file_that_stays_open_for_writing_is_told_and_the_old_generation_stays(
    web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice
) -> None:
    server = serve(orders)
    agent = sluice(documents(web, orders, server.port))
    with (agent.policies / "documents.yaml").open("w") as file:
        file.write(documents(web, orders, server.port, ALLOW_B))
        file.flush()
        error = eventually(lambda: agent.get("/policy")["lastReloadError"], "the error")
        assert "documents.yaml is open for writing" in error
        assert error == agent.get("/healthz")["checks"]["policy"]["detail"]
        assert agent.log.read_text().count("is open for writing") == 1
        with web.connect(server.port) as client:
            assert (call(client, "/a"), call(client, "/b")) == (200, 403)
    eventually(lambda: agent.generation() > 1, "the new generation")
    assert agent.get("/policy")["lastReloadError"] is None
    assert agent.get("/healthz")["ok"] is True


@about_files
def test_a_start_waits_for_the_end_of_a_file_that_is_being_written(
    web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice
) -> None:
    server = serve(orders)
    agent = sluice(documents(web, orders, server.port))
    assert agent.stop() == 0
    with (agent.policies / "documents.yaml").open("w") as file:
        file.write(web.document() + orders.document())
        file.flush()
        agent.launch()
        time.sleep(1)
        assert "ready" not in agent.log.read_text()
        file.write(http_policy(orders, web, server.port, ALLOW_B))
    eventually(lambda: "ready" in agent.log.read_text(), "the start")
    with web.connect(server.port) as client:
        assert (call(client, "/a"), call(client, "/b")) == (403, 200)


@about_files
@pytest.mark.parametrize("kind", ["fifo", "device", "loop of links"])
def test_what_is_no_file_is_told_and_holds_nobody_up(
    kind: str, web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice
) -> None:
    server = serve(orders)
    agent = sluice(documents(web, orders, server.port))
    odd = agent.policies / "odd.yaml"
    if kind == "fifo":
        os.mkfifo(odd)
    else:
        odd.symlink_to("/dev/zero" if kind == "device" else odd)
    error = eventually(lambda: agent.get("/policy")["lastReloadError"], "the error")
    assert str(odd) in error
    assert error == agent.get("/healthz")["checks"]["policy"]["detail"]
    with web.connect(server.port) as client:
        assert (call(client, "/a"), call(client, "/b")) == (200, 403)
    assert agent.stop() == 0, "it ends when it is told to"
    agent.launch()
    assert agent.process is not None
    assert agent.process.wait(30) in (1, 2)
    assert str(odd) in agent.log.read_text()


def test_a_connection_outlives_its_clients_cgroup(
    web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice
) -> None:
    server = serve(orders)
    agent = sluice(documents(web, orders, server.port))
    with web.inside("pod"):
        client = socket.create_connection(("127.0.0.1", server.port), timeout=15)
    with client:
        assert call(client, "/a") == 200
        (web.cgroup / "pod").rmdir()
        web.cgroup.rmdir()
        assert (call(client, "/a"), call(client, "/b")) == (200, 403)
        records = agent.wait_records(3)
        assert {record["subject"]["workload"] for record in records} == {web.name}
    assert agent.get("/healthz")["ok"] is True
    web.cgroup.mkdir()

    def connect_again() -> socket.socket | None:
        with contextlib.suppress(BlockingIOError):  # it is not known yet
            return web.connect(server.port)
        return None

    with eventually(connect_again, "the cgroup is known again") as again:
        assert (call(again, "/a"), call(again, "/b")) == (200, 403)


def test_a_subject_whose_document_is_removed_is_part_of_the_host_from_its_next_call(
    web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice
) -> None:
    server = serve(orders)
    agent = sluice(documents(web, orders, server.port))
    with web.connect(server.port) as client:
        assert call(client, "/a") == 200
        change(agent, orders.document() + http_policy(orders, web, server.port, ALLOW_A))
        assert call(client, "/a") == 403
    with pytest.raises(PermissionError):
        web.connect(server.port)
    assert agent.get("/healthz")["ok"] is True


def test_a_cgroup_that_is_too_deep_is_told_and_does_not_end_the_looking(
    web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice
) -> None:
    """Whoever may make cgroups below a workload's could otherwise freeze the policy of the whole host."""
    server = serve(orders)
    deep = web.document().replace("/sluice/", "/sluice/**/") + documents(web, orders, server.port).replace(web.document(), "")
    agent = sluice(deep)
    folder = web.cgroup
    made = []
    for _ in range(18):
        folder = folder / web.name
        folder.mkdir()
        made.append(folder)
    try:
        eventually(lambda: not agent.get("/healthz")["checks"]["workloads"]["ok"], "the trouble in /healthz")
        assert "levels deep" in agent.log.read_text()
        with web.connect(server.port) as client:
            assert (call(client, "/a"), call(client, "/b")) == (200, 403)
    finally:
        for folder in reversed(made):
            folder.rmdir()
    eventually(lambda: agent.get("/healthz")["ok"], "health")
    change(agent, deep.replace("/a(/.*)?", "/b(/.*)?"))
    with web.connect(server.port) as client:
        assert (call(client, "/a"), call(client, "/b")) == (403, 200)

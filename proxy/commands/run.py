"""``sluice run``: the agent, in the foreground."""

import os
import sys
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import click

DEFAULT_AUDIT = "/var/log/sluice/audit.jsonl"
DEFAULT_RUN_DIR = "/run/sluice"
# A day: the agent must not be the one that cuts connections which both ends want to keep.
DEFAULT_IDLE_TIMEOUT = 86400.0
DEFAULT_DRAIN_TIMEOUT = 30.0
# MiB of memory for records and for what connections keep. A worker needs room for the longest message that it must read as a
# whole (proxy/memory.py: RESERVE) and as much again.
LEAST_WORKER_MEMORY = 64
DEFAULT_MEMORY = 256

USAGE_ERROR, FAULT = 2, 1


def _addresses(_: click.Context, __: click.Parameter, texts: tuple[str, ...]) -> tuple[IPv4Address | IPv6Address, ...]:
    try:
        addresses = tuple(map(ip_address, texts))
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    if len({address.version for address in addresses}) < len(addresses):
        raise click.BadParameter("at most one IPv4 and one IPv6 address")
    return addresses


@click.command()
@click.option(
    "-f", "--file", "paths", multiple=True, required=True, type=click.Path(exists=True), help="Documents: file or folder."
)
@click.option("--audit", default=DEFAULT_AUDIT, show_default=True, help="Where records go: a file, or - for standard output.")
@click.option(
    "--admin",
    default="",
    metavar="PATH_OR_PORT",
    help="Admin listener: a socket path, or a port beside it [default: RUN_DIR/admin.sock].",
)
@click.option(
    "--datapath",
    type=click.Choice(["auto", "kernel", "relay"]),
    default="auto",
    show_default=True,
    help="How allowed calls travel: in the kernel where it can, only by the relay, or kernel: refuse to start without it.",
)
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes that share the load.")
@click.option(
    "--run-dir", type=click.Path(path_type=Path), default=Path(DEFAULT_RUN_DIR), show_default=True, help="Locks and sockets."
)
@click.option(
    "--gateway",
    "gateways",
    multiple=True,
    metavar="ADDRESS",
    callback=_addresses,
    help="An address of this host that clients in other network namespaces can reach; without one they are refused.",
)
@click.option(
    "--idle-timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=DEFAULT_IDLE_TIMEOUT,
    show_default=True,
    help="Seconds without a byte, then a connection ends.",
)
@click.option(
    "--memory-budget",
    type=click.IntRange(min=LEAST_WORKER_MEMORY),
    metavar="MIB",
    help=f"Memory for open calls, records and what connections keep [default: {DEFAULT_MEMORY}, "
    f"or {LEAST_WORKER_MEMORY} for each worker].",
)
@click.option(
    "--drain-timeout",
    type=click.FloatRange(min=0),
    default=DEFAULT_DRAIN_TIMEOUT,
    show_default=True,
    help="Seconds for open calls after SIGTERM.",
)
@click.option(
    "--record-header", "record_headers", multiple=True, metavar="NAME", help="Record the values of this request header."
)
@click.option(
    "--existing",
    type=click.Choice(["keep", "reset", "reset-denied"]),
    default="reset-denied",
    show_default=True,
    help="Connections older than the agent or the policy: end those that policy would not let pass natively, all of policed "
    "workloads, or none.",
)
@click.option(
    "--hold-on-exit", is_flag=True, help="Go on refusing policed connections after a clean stop, until the next agent."
)
def run(
    paths: tuple[str, ...],
    audit: str,
    admin: str,
    datapath: str,
    workers: int,
    run_dir: Path,
    gateways: tuple[IPv4Address | IPv6Address, ...],
    idle_timeout: float,
    memory_budget: int | None,
    drain_timeout: float,
    record_headers: tuple[str, ...],
    existing: str,
    hold_on_exit: bool,
) -> None:
    """Enforce the documents in PATH... and record every call, until SIGTERM.

    Needs root (or CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN and write access to the cgroup tree). A changed document, or SIGHUP,
    reloads; SIGHUP also reopens the audit file. If the agent is killed, policed connections are refused until the next
    agent runs. Exit: 0 after SIGTERM, 1 on a fault, 2 for bad usage or documents.
    """
    from bpf.loader import BpfError
    from policies.compile import TableLimitError
    from policies.load import LoadError
    from proxy.admin import AdminError
    from proxy.agent import Agent, Options, StartError
    from proxy.guard import GuardError, HeldError
    from proxy.pool import WorkerError
    from proxy.port import PortError
    from proxy.runtime import run_loop
    from proxy.workloads import WorkloadError

    if os.geteuid() != 0:
        _end(FAULT, "Sluice needs root: it loads eBPF programs and attaches them to the cgroup tree (see sluice check)")
    least = LEAST_WORKER_MEMORY * workers
    if memory_budget is not None and memory_budget < least:
        _end(USAGE_ERROR, f"--memory-budget: {workers} workers need at least {least} MiB")
    options = Options(
        paths=paths,
        audit=audit,
        admin=admin or str(run_dir / "admin.sock"),
        workers=workers,
        run_dir=run_dir,
        gateways=gateways,
        idle_timeout=idle_timeout,
        drain_timeout=drain_timeout,
        record_headers=record_headers,
        hold_on_exit=hold_on_exit,
        existing=existing,
        datapath=datapath,
        memory=(memory_budget or max(DEFAULT_MEMORY, least)) << 20,
    )
    try:
        if audit != "-":
            Path(audit).parent.mkdir(0o755, parents=True, exist_ok=True)
        code = run_loop(Agent(options).run())
    except LoadError as error:
        _end(USAGE_ERROR, f"these documents cannot be enforced:\n{error}")
    except (StartError, PortError, GuardError, HeldError, AdminError, BpfError) as error:
        _end(FAULT, str(error))
    except (WorkloadError, WorkerError, TableLimitError, OSError) as error:
        _end(FAULT, str(error))
    sys.exit(code)


def _end(code: int, text: str) -> None:
    click.echo(f"sluice: {text}", err=True)
    sys.exit(code)

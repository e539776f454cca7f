"""``sluice exec``: run a command as a workload."""

import os
import re
import signal
import sys

import click

from proxy.workloads import OWN_FOLDER, WorkloadError, cgroup2_mount

NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}")


@click.command(name="exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("name")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(name: str, command: tuple[str, ...]) -> None:
    """Run COMMAND in the cgroup /sluice/NAME, which a Workload document can name.

    \b
    Example:
      sluice exec web -- curl -i http://127.0.0.1:8080/orders/1

    The cgroup is made if it is not there. The exit code is the command's; 126 and 127 mean that it could not be run.
    """
    if command[0] == "--":
        command = command[1:]
    if not command:
        raise click.UsageError("Missing argument 'COMMAND...'.")
    if not NAME.fullmatch(name):
        raise click.BadParameter("letters, digits, dots, dashes and underscores, at most 63", param_hint="NAME")
    try:
        folder = cgroup2_mount() / OWN_FOLDER / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cgroup.procs").write_text("0")
    except (OSError, WorkloadError) as error:
        click.echo(f"sluice: cannot enter the cgroup of workload {name}: {error} (are you root?)", err=True)
        sys.exit(126)
    # Python ignores SIGPIPE, and what is ignored stays ignored across exec: `sluice exec web -- yes | head` would not end.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)  # noqa: S606 - running what we were given is the purpose
    except FileNotFoundError:
        click.echo(f"sluice: {command[0]}: command not found", err=True)
        sys.exit(127)
    except OSError as error:
        click.echo(f"sluice: {command[0]}: {error.strerror}", err=True)
        sys.exit(126)

"""``sluice check``: is this machine fit, and what to mend."""

import sys
from pathlib import Path

import click
import msgspec

from proxy.commands.run import DEFAULT_RUN_DIR


@click.command()
@click.option(
    "--run-dir", type=click.Path(path_type=Path), default=DEFAULT_RUN_DIR, show_default=True, help="Run folder of the agent."
)
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def check(run_dir: Path, output: str) -> None:
    """Look at kernel, cgroups, rights, neighbours and limits, and redirect one connection as a test.

    Nothing is changed, and a running agent is not disturbed. Exit: 0 if this machine is fit, 1 if not.
    """
    from proxy.preflight import preflight

    results = preflight(run_dir)
    fit = all(result.ok for result in results)
    if output == "json":
        click.echo(msgspec.json.encode({"fit": fit, "checks": results}))
    else:
        width = max(len(result.name) for result in results)
        for result in results:
            click.echo(f"{'ok  ' if result.ok else 'FAIL'}  {result.name:<{width}}  {result.detail}")
            if result.hint:
                for line in result.hint.splitlines():
                    click.echo(f"{'':<{width + 8}}{'hint: ' if not result.ok else 'note: '}{line}")
        click.echo("This machine is fit." if fit else "This machine is not fit: mend what is marked FAIL.")
    sys.exit(0 if fit else 1)

"""``sluice lint``: what is wrong or suspicious in documents, before an agent reads them."""

import json
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from policies.lint import lint as find
from policies.load import Finding, LoadError, load
from proxy.documents import read_sources

FINDINGS, UNREADABLE = 1, 2
NOT_YAML = "SE001"


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True, help="The form.")
@click.pass_context
def lint(ctx: click.Context, paths: tuple[Path, ...], output: str) -> None:
    """Find mistakes in the documents of PATH... (files or folders; - is standard input).

    Every finding is one line, file:line:col CODE message. Codes SE... are errors, with which an agent does not start; codes
    SL... are allowed and probably not meant. Exit: 0 clean, 1 findings, 2 unreadable.
    """
    try:
        findings: Sequence[Finding] = find(load(read_sources(paths, stdin=True)))
    except LoadError as error:
        findings = error.findings
    except OSError as error:
        raise click.exceptions.Exit(_unreadable(error)) from None
    if output == "json":
        click.echo(json.dumps([msgspec.to_builtins(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            click.echo(str(finding))
    if any(finding.code == NOT_YAML for finding in findings):
        ctx.exit(UNREADABLE)
    ctx.exit(FINDINGS if findings else 0)


def _unreadable(error: OSError) -> int:
    click.echo(f"sluice lint: {error.filename}: {error.strerror}", err=True)
    return UNREADABLE

"""The ``sluice`` command. Every verb lives in a module of its own below proxy/commands, imported only when it is used."""

import importlib

import click

# name -> one line for the list of verbs; the module's click command has the same name as the verb.
VERBS = {
    "run": "Run the agent in the foreground.",
    "exec": "Run a command as a workload.",
    "check": "Tell whether this machine is fit, and what to mend.",
    "lint": "Find mistakes in policy files.",
    "explain": "Say which rule decides a call, and why not the others.",
    "observe": "Show calls, live or from a file.",
}


class Verbs(click.Group):
    """Lists verbs without importing them: an agent must not pay memory for the tables that ``observe`` draws."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"proxy.commands.{cmd_name}")
        command = getattr(module, cmd_name if cmd_name != "exec" else "exec_")
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sluice")
def main() -> None:
    """Sluice: API policy and one record per call, without sidecars.

    eBPF redirects the connections of selected workloads to the agent, which reads HTTP, enforces CiliumNetworkPolicy
    documents and records every call. Applications are not changed.

    \b
    Try it:
      sluice check                                   is this machine fit?
      sluice lint policies/                          are these documents sound?
      sluice explain -f policies/ --from web --to orders:8080 'GET /orders/1'
      sluice run -f policies/                        enforce (as root)
      sluice exec web -- curl http://orders:8080/    run something as workload "web"
      sluice observe --follow                        see the calls
    """


if __name__ == "__main__":
    main()

"""Which process runs on which CPU."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """CPU numbers of each party; None: wherever the kernel likes."""

    name: str
    client: int | None
    proxy: int | None
    server: int | None

    @property
    def cpus(self) -> set[int]:
        return {cpu for cpu in (self.client, self.proxy, self.server) if cpu is not None}

    def pins(self) -> dict[str, tuple[str, ...]]:
        """Prefixes of the commands of "client", "proxy" and "server"."""
        parties = {"client": self.client, "proxy": self.proxy, "server": self.server}
        return {party: () if cpu is None else ("taskset", "-c", str(cpu)) for party, cpu in parties.items()}


ONE_CPU = Layout("one-cpu", client=0, proxy=0, server=0)  # the work of a call, whoever does it
SPLIT = Layout("split", client=1, proxy=0, server=1)  # what a proxy can do with a core of its own
UNPINNED = Layout("unpinned", client=None, proxy=None, server=None)  # what a user sees
SERVER_APART = Layout(
    "server-apart", client=0, proxy=0, server=1
)  # Kafka: a proxy on its client's CPU, as direct clients have it
LAYOUTS = (ONE_CPU, SPLIT, SERVER_APART, UNPINNED)

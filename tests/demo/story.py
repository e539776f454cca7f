"""What happens in the demo, as data: who calls what, and what must come of it.

A call that is answered has one audit record. A connection that is refused has none, because no call was ever
made on it, but it is counted.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tests.demo.system import REFUSED, System

HOST = None  # a process of this host that is no workload


@dataclass(frozen=True)
class Answer:
    """``status`` for the client, and the facts of the record; None: the record must not have it."""

    status: int
    verdict: str
    reason: str
    policy: str | None = None
    rule: str | None = None
    same_connection: bool = False  # as the call before it by the same program

    @property
    def facts(self) -> dict[str, Any]:
        """Keys and values that the record must have."""
        names = ("status", "verdict", "reason", "policy", "rule")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Unseen:
    """``status`` for the client (or that it was refused), and no record. ``counted``: as a refusal, in the metrics."""

    status: int | str
    why: str
    counted: bool = False


@dataclass(frozen=True)
class Chapter:
    title: str


@dataclass(frozen=True)
class Event:
    says: str
    do: Callable[[System], None]


@dataclass(frozen=True)
class Call:
    says: str
    who: str | None
    method: str
    url: str
    expected: Answer | Unseen
    headers: tuple[str, ...] = ()
    client: Callable[..., int | str] = System.curl

    @property
    def server(self) -> str:
        """Workload or address."""
        return urlsplit(self.url).hostname or ""

    @property
    def target(self) -> str:
        """The path with its query."""
        return "/" + self.url.split("/", 3)[3]


@dataclass(frozen=True)
class Talk:
    """What a Kafka client tries in one go, with all the requests that takes.

    ``step`` is one of tests/kafka/clients/jobs.py and ``expected`` what it must come to; ``record`` are facts that one of the
    records must have, the one that says why.
    """

    says: str
    who: str
    step: Mapping[str, Any]
    expected: Any
    record: Mapping[str, Any]


Step = Chapter | Event | Call | Talk


def allowed(policy: str, rule: str, same_connection: bool = False) -> Answer:
    return Answer(200, "ALLOWED", "rule-matched", policy, rule, same_connection)


ORDERS, PAYMENTS, WIKI, WORLD = "http://orders:8080", "http://payments:8443", "http://wiki", "http://203.0.113.10"
METADATA = "http://169.254.169.254"

# Rules of a CiliumNetworkPolicy have no names: their place in the document is their name.
READ = allowed("orders-api", "ingress[0].toPorts[0].rules.http[0]")
PLACE = allowed("orders-api", "ingress[0].toPorts[0].rules.http[1]")
EXPORT = allowed("orders-api", "ingress[1].toPorts[0].rules.http[0]")
FETCH = allowed("crawler-egress", "egress[0].toPorts[0].rules.http[0]")
NOT_CONNECTED = Unseen(REFUSED, "not connected", counted=True)


def no_rule(policy: str, same_connection: bool = False) -> Answer:
    """Nothing allowed it; the record names the policy that was asked."""
    return Answer(403, "DENIED", "no-rule-matched", policy, same_connection=same_connection)


NO_RULE = no_rule("orders-api")


def spoken(method: str, verdict: str, status: str, policy: str, *resources: str) -> Mapping[str, Any]:
    """The facts of a Kafka request's record."""
    return {"method": method, "verdict": verdict, "status": status, "policy": policy, "resources": list(resources)}


KAFKA: tuple[Step, ...] = (
    Chapter("kafka.yaml: who may write and read which topic"),
    Talk(
        "shop writes an order",
        "shop", {"do": "produce", "records": {"orders": ["one"]}}, {"orders": "ok"},
        spoken("Produce", "ALLOWED", "kafka:0", "shop-writes", "topic:orders"),
    ),
    Talk(
        "shop may not write payments (topic)",
        "shop", {"do": "produce", "records": {"payments.cards": ["one"]}}, {"payments.cards": "TopicAuthorization"},
        spoken("Metadata", "PARTIAL", "kafka:29", "billing-reads, brokers-talk, shop-writes", "topic:payments.cards"),
    ),
    Talk(
        "billing reads the order, as a member of its group",
        "billing", {"do": "consume", "topics": ["orders"], "group": "billing", "count": 1}, {"values": ["one"], "errors": []},
        spoken("Fetch", "ALLOWED", "kafka:0", "billing-reads", "topic:orders"),
    ),
    Talk(
        "billing may not read it for another group (group)",
        "billing", {"do": "consume", "topics": ["orders"], "group": "audit", "errors": 1},
        {"values": [], "errors": ["GroupAuthorization"]},
        spoken("FindCoordinator", "DENIED", "kafka:30", "billing-reads, brokers-talk, shop-writes", "group:audit"),
    ),
)  # fmt: skip

STORY: tuple[Step, ...] = (
    Event("start nginx as orders, payments, wiki, and one in another network", System.start_servers),
    Event("start Apache Kafka as kafka", System.start_kafka),
    Chapter("Without Sluice anybody may do anything"),
    Call("any process reads an order", HOST, "GET", f"{ORDERS}/orders/1", Unseen(200, "no agent")),
    Call("web deletes an order", "web", "DELETE", f"{ORDERS}/orders/1", Unseen(200, "no agent")),
    Event("start the agent: sluice run -f policies/examples/", System.start_agent),
    Chapter("http-orders.yaml: a CiliumNetworkPolicy as it is"),
    Call("web reads an order", "web", "GET", f"{ORDERS}/orders/1", READ),
    Call("web may not delete it (method)", "web", "DELETE", f"{ORDERS}/orders/1", NO_RULE),
    Call("web may not see the administration (path)", "web", "GET", f"{ORDERS}/admin", NO_RULE),
    Call("web places an order with its header", "web", "POST", f"{ORDERS}/orders", PLACE, ("X-Request-Source: web",)),
    Call("web may not place one without it (header)", "web", "POST", f"{ORDERS}/orders", NO_RULE),
    Call(
        "web hides a slash in the path",
        "web", "GET", f"{ORDERS}/orders%2F1", Answer(400, "DENIED", "encoded-slash", "orders-api"),
    ),
    Call("batch, in Python, exports the orders", "batch", "GET", f"{ORDERS}/orders/export", EXPORT, client=System.python),
    Call("batch may not read one (caller)", "batch", "GET", f"{ORDERS}/orders/1", NO_RULE, client=System.python),
    Call(
        "any other process cannot even connect",
        HOST, "GET", f"{ORDERS}/orders/1", NOT_CONNECTED,
    ),
    Chapter("deny-rule.yaml: rules that forbid, and win"),
    Call("intranet reads a page", "intranet", "GET", f"{WIKI}/page", allowed("wiki-api", "anything")),
    Call(
        "intranet may not see the administration (deny rule)",
        "intranet", "GET", f"{WIKI}/admin/users", Answer(403, "DENIED", "deny-rule", "wiki-api", "no-admin"),
    ),
    Call(
        "intranet may not debug (query)",
        "intranet", "GET", f"{WIKI}/page?debug=1", Answer(403, "DENIED", "deny-rule", "wiki-api", "no-debugging"),
    ),
    Call(
        "intranet still uses the old API (deny rule in audit mode)",
        "intranet", "GET", f"{WIKI}/v1/page", Answer(200, "WOULD_DENY", "deny-rule", "wiki-api", "old-api-closes"),
    ),
    Chapter("audit-mode.yaml: see what a policy would stop, before it does"),
    Call(
        "checkout captures a payment (path template)",
        "checkout", "POST", f"{PAYMENTS}/payments/7/capture", Answer(200, "ALLOWED", "default-allow", "payments-trial"),
    ),
    Call(
        "checkout refunds one: passes, but is recorded",
        "checkout", "POST", f"{PAYMENTS}/payments/7/refund", Answer(200, "WOULD_DENY", "no-rule-matched", "payments-trial"),
    ),
    Chapter("egress-cidr.yaml: where a workload may go, and what it may do there"),
    Call("crawler fetches from the world", "crawler", "GET", f"{WORLD}/robots.txt", FETCH),
    Call("crawler may not post there", "crawler", "POST", f"{WORLD}/form", no_rule("crawler-egress")),
    Call(
        "crawler may not reach the cloud's metadata service",
        "crawler", "GET", f"{METADATA}/latest", NOT_CONNECTED,
    ),
    *KAFKA,
    Chapter("A policy changes while connections are open"),
    Event("edit http-orders.yaml: batch may read /orders/archive instead of /orders/export", System.change_policy),
    Call(
        "batch exports again, on the connection it had",
        "batch", "GET", f"{ORDERS}/orders/export", no_rule("orders-api", same_connection=True),
        client=System.python,
    ),
    Call(
        "batch reads the archive, on the same connection",
        "batch", "GET", f"{ORDERS}/orders/archive",
        allowed("orders-api", "ingress[1].toPorts[0].rules.http[0]", same_connection=True),
        client=System.python,
    ),
    Chapter("The agent dies: nothing passes unjudged"),
    Event("kill -9 the agent", System.kill_agent),
    Call("web cannot connect", "web", "GET", f"{ORDERS}/orders/1", Unseen(REFUSED, "agent is dead")),
    Event("start it again", System.restart_agent),
    Call("web reads an order again", "web", "GET", f"{ORDERS}/orders/1", READ),
    Event("stop it, in order", System.stop_agent),
)  # fmt: skip

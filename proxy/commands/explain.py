"""``sluice explain``: which rule decides a call, and why not the others, from the documents alone."""

import json
import re
from pathlib import Path
from typing import Any

import click
import msgspec

from parsers.contract import ApiCall, Direction, Fail, Judge
from parsers.http1 import Http1Parser
from parsers.target import BadTarget, parse_target
from policies.decide import Action, PolicySet, parse_address
from policies.explain import PROVEN, Candidate, Explanation
from policies.explain import explain as find
from policies.load import LoadError, load
from policies.model import Direction as Side
from policies.model import Endpoint
from proxy.documents import read_sources

DENIED, ERROR = 1, 2
_PORT = re.compile(r"[1-9][0-9]{0,4}")
# RFC 9113 section 3.4: how every client begins.
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HOST = "host"  # how the entity of this host's other processes is named on the command line


class BadRequestError(Exception):
    """The proxy would answer this request itself, whatever policy says."""


@click.command()
@click.option("-f", "--file", "paths", multiple=True, required=True, type=click.Path(path_type=Path), help="File or folder.")
@click.option("--from", "from_", required=True, metavar="NAME", help="Who calls: a workload, an address, or host.")
@click.option("--to", required=True, metavar="NAME[:PORT]", help="Who is called: a workload, an address ([v6]:port), or host.")
@click.option("--header", "headers", multiple=True, metavar="'K: V'", help="A header of the request, or metadata of the call.")
@click.option("--host", help="The Host header.  [default: what --to says]")
@click.option("--group", "groups", multiple=True, metavar="G", help="Kafka: a consumer group that the request names.")
@click.option("--transactional-id", "transactional_ids", multiple=True, metavar="T", help="Kafka: likewise.")
@click.option("--client-id", metavar="ID", help="Kafka: what the client calls itself.")
@click.option("--api-version", type=click.IntRange(0, 32767), metavar="N", help="Kafka: of the request.  [default: the newest]")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True, help="The form.")
@click.argument("request")
@click.pass_context
def explain(
    ctx: click.Context,
    /,
    paths: tuple[Path, ...],
    from_: str,
    to: str,
    headers: tuple[str, ...],
    host: str | None,
    output: str,
    request: str,
    **kafka: Any,
) -> None:
    """Say which rule decides REQUEST, and why not the others. No agent is needed.

    REQUEST is 'GET /orders/1', 'grpc pkg.Svc/Method' or 'kafka API [TOPIC ...]', such as 'kafka produce orders'. It is
    decided by the proxy's own engine. Exit: 0 allowed (or in part), 1 denied, 2 error.
    """
    try:
        policy_set = PolicySet(load(read_sources(paths)), generation=0)
        subject = _endpoint(policy_set, from_)
        peer, port = _destination(policy_set, to)
        call, head = _call(request, host or _default_host(to), headers, kafka)
        explanation = find(policy_set, subject, peer, port, call, head)
        if call.protocol == "grpc" and explanation.decision.allowed:
            _check_http2(policy_set, subject, peer, port)
    except LoadError as error:
        raise click.exceptions.Exit(_fail(str(error))) from None
    except OSError as error:
        raise click.exceptions.Exit(_fail(f"{error.filename}: {error.strerror}")) from None
    except BadRequestError as error:
        _show_bad_request(str(error), output)
        ctx.exit(DENIED)
    click.echo(json.dumps(_as_json(explanation), indent=2) if output == "json" else _as_text(explanation, request, from_, to))
    ctx.exit(0 if explanation.decision.allowed else DENIED)


def _fail(message: str) -> int:
    click.echo(message, err=True)
    return ERROR


# From words to what the engine is asked


def _endpoint(policy_set: PolicySet, text: str) -> Endpoint:
    if text == HOST:
        return Endpoint(local=True)
    address = parse_address(text)
    if address is not None:
        owner = policy_set.workload_of_address(text)
        return policy_set.endpoint(owner.name) if owner is not None else Endpoint(address=text)
    try:
        return policy_set.endpoint(text)
    except KeyError:
        names = ", ".join(workload.name for workload in policy_set.bundle.workloads) or "none"
        raise click.UsageError(f"no workload {text!r} in the documents (there are: {names}), and no address") from None


def _destination(policy_set: PolicySet, text: str) -> tuple[Endpoint, int]:
    name, port = _split_port(text)
    peer = _endpoint(policy_set, name)
    return peer, port if port is not None else _only_port(policy_set, peer, name)


def _split_port(text: str) -> tuple[str, int | None]:
    if parse_address(text) is not None:  # an IPv6 address has colons of its own
        return text, None
    name, colon, port = text.rpartition(":")
    if not colon:
        return text, None
    if not _PORT.fullmatch(port) or int(port) > 65535:
        raise click.UsageError(f"--to: {port!r} is not a port")
    return name.removeprefix("[").removesuffix("]"), int(port)


def _only_port(policy_set: PolicySet, peer: Endpoint, name: str) -> int:
    """The port that the peer's ingress policies speak of, when it is one."""
    ports = {
        (ports.first, ports.last)
        for policy in policy_set.policies_of(peer, Side.INGRESS)
        for rule in (policy.ingress.rules if policy.ingress is not None else ())
        for port_rule in rule.ports or ()
        for ports in port_rule.ports
    }
    first, last = ports.pop() if len(ports) == 1 else (0, 0)
    if first == last != 0:
        return first
    raise click.UsageError(f"--to {name}: say which port, as {name}:8080")


def _default_host(to: str) -> str:
    """What a client sends: the port is left out when it is HTTP's own (RFC 9110 section 7.2)."""
    return to.removesuffix(":80")


def _call(request: str, host: str, headers: tuple[str, ...], kafka: dict[str, Any]) -> tuple[ApiCall, bytes | None]:
    """The call, and its bytes if it is an HTTP/1.1 request."""
    method, _, target = request.strip().partition(" ")
    target = target.strip()
    if method == "kafka":
        if headers:
            raise click.UsageError("--header: Kafka has no headers")
        return _kafka_call(target, kafka), None
    if any(kafka.values()):
        raise click.UsageError("--group, --transactional-id, --client-id and --api-version are for 'kafka API [TOPIC ...]'")
    if not target:
        raise click.UsageError(
            "REQUEST is 'METHOD TARGET', such as 'GET /orders/1', 'grpc pkg.Svc/Method', or 'kafka API TOPIC'"
        )
    return (_grpc_call(target, host, headers), None) if method == "grpc" else _http_call(method, target, host, headers)


def _kafka_call(target: str, options: dict[str, Any]) -> ApiCall:
    from proxy.commands.explain_kafka import Options, UnsupportedRequestError, kafka_call  # large: only who asks pays for it

    try:
        return kafka_call(target, Options(**options))
    except UnsupportedRequestError as error:
        raise BadRequestError(str(error)) from None


def _http_call(method: str, target: str, host: str, headers: tuple[str, ...]) -> tuple[ApiCall, bytes]:
    """The call as the proxy would see it: its own parser reads a request made of these words."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *headers, "", ""]
    head = "\r\n".join(lines).encode("utf-8", "surrogateescape")
    for verb in Http1Parser().on_data(Direction.REQUEST, head, False):
        if isinstance(verb, Judge):
            return verb.call, head
        if isinstance(verb, Fail):
            raise BadRequestError(verb.reason)
    raise BadRequestError("incomplete")


def _check_http2(policy_set: PolicySet, subject: Endpoint, peer: Endpoint, port: int) -> None:
    """Raises `BadRequestError` if the proxy's parser refuses HTTP/2, which gRPC is spoken in, where it reads the connection."""
    pair = policy_set.pair(subject, peer, port)
    if pair.action is not Action.REDIRECT or pair.protocol not in ("http", "grpc") or pair.only_watches:
        return
    for verb in Http1Parser().on_data(Direction.REQUEST, HTTP2_PREFACE, False):
        if isinstance(verb, Fail):
            raise BadRequestError(verb.reason)


def _grpc_call(target: str, host: str, headers: tuple[str, ...]) -> ApiCall:
    try:
        judged = parse_target("POST", f"/{target.removeprefix('/')}")
    except BadTarget:
        raise BadRequestError("bad-target") from None
    pairs = (header.partition(":") for header in headers)
    metadata = tuple((name.strip().lower(), value.strip()) for name, _, value in pairs)
    return ApiCall(
        protocol="grpc",
        method="POST",
        path=judged.path,
        host=host.lower().removesuffix("."),
        headers=(("content-type", "application/grpc"), *metadata),
        path_fault=judged.fault,
        query_fault=judged.query_fault,
    )


# From the explanation to words


def _as_json(explanation: Explanation) -> dict[str, Any]:
    # What answers further questions about a reply is no fact.
    decision = msgspec.structs.replace(explanation.decision, granting=None)
    built = msgspec.to_builtins(msgspec.structs.replace(explanation, decision=decision), str_keys=True)
    assert isinstance(built, dict)
    del built["decision"]["granting"]
    built["action"] = explanation.action.name
    for edit in built["decision"]["edits"]:
        del edit["value"]  # it may be a secret's
    return built


def _show_bad_request(reason: str, output: str) -> None:
    if output == "json":
        click.echo(json.dumps({"decision": {"verdict": "DENIED", "reason": reason}}, indent=2))
    else:
        click.echo(f"DENIED  the proxy refuses this request before policy is asked: {reason}")


def _as_text(explanation: Explanation, request: str, from_: str, to: str) -> str:
    decision = explanation.decision
    lines = [f"{decision.verdict}  {request}  {from_} -> {to}", f"  reason   {decision.reason}"]
    lines += [f"  {name:8} {value}" for name, value in (("policy", decision.policy), ("rule", decision.rule)) if value]
    if decision.direction is not None:
        lines.append(f"  side     {decision.direction}")
    if explanation.kernel is not None:
        kernel = explanation.kernel if explanation.kernel == PROVEN else f"asks the proxy ({explanation.kernel})"
        lines.append(f"  kernel   {kernel}")
    if explanation.unasked:
        ends = {Side.EGRESS: from_, Side.INGRESS: to}
        unasked = " and ".join(ends[side] for side in explanation.unasked)
        lines.append(f"  note     not carried by --datapath auto where `sluice check` finds a way to read wrong: {unasked}")
        lines.append("           would have to say acceleration: on")
    if explanation.action is not Action.REDIRECT:
        how = "refused when it is made" if explanation.action is Action.REFUSE else "not read: nothing is enforced on its calls"
        lines.append(f"  note     the connection is {how}")
    lines += [f"  {verdict:8} {resource}" for resource, verdict in (decision.per_resource or {}).items()]
    if explanation.cut_down:
        lines.append("  note     its reply is cut down to the topics that the rules allow")
    lines += [f"  note     {note}" for note in decision.notes]
    lines += [f"  change   {edit.action} header {edit.name}" for edit in decision.edits]
    for direction, policies in explanation.policies.items():
        lines += ["", f"{direction}: {', '.join(policies)}"]
        lines += [_candidate_line(one) for one in explanation.candidates if one.direction is direction]
    if not explanation.policies:
        lines += ["", "no policy selects either side"]
    if explanation.elsewhere:
        lines += ["", *explanation.elsewhere]
    return "\n".join(lines)


def _candidate_line(candidate: Candidate) -> str:
    result = candidate.note or ("matches" if candidate.mismatch is None else f"no match: {candidate.mismatch}")
    place = f"{candidate.place.file}:{candidate.place.line}:{candidate.place.column}"
    return f"  {place}  {candidate.policy} {candidate.rule}  [{candidate.effect}]  {result}"

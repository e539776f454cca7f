"""Which records somebody asked for: the filters of ``sluice observe``.

A record is what JSON gave, a dictionary of anything: the file may be of another version, or of another program.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import re2

Record = Mapping[str, Any]
Predicate = Callable[[Record], bool]

VERDICTS = ("ALLOWED", "DENIED", "PARTIAL", "WOULD_DENY")
PROTOCOLS = ("http/1.1", "http/2", "grpc", "kafka", "tcp", "unknown")
# What a status can be besides HTTP's codes and their classes.
_STATUSES = ("reset", "unanswered", "unknown")
_STATUS = re.compile(r"[1-5]([0-9]{2}|xx)|grpc:[0-9]{1,2}|kafka:-?[0-9]{1,5}")
# A name on its own, or with a port: no blanks, which a quoted list of names would have.
_PARTY = re.compile(r"[^\s,]+")
_METHOD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def query(wanted: Mapping[str, Sequence[str]], unwanted: Sequence[str]) -> Predicate:
    """One predicate for all filters: of each field in ``wanted`` one of the values, and none of ``unwanted`` (``field=value``).

    Raises ``ValueError`` for an unknown field or a bad regular expression.
    """
    required = [[matcher(field, value) for value in values] for field, values in wanted.items() if values]
    excluded = [_parse(text) for text in unwanted]

    def matches(record: Record) -> bool:
        return all(any(match(record) for match in group) for group in required) and not any(match(record) for match in excluded)

    return matches


def matcher(field: str, value: str) -> Predicate:
    """A predicate for one field of ``FIELDS``."""
    try:
        make = FIELDS[field]
    except KeyError:
        raise ValueError(f"unknown filter {field!r}: it is one of {', '.join(FIELDS)}") from None
    return make(value)


def client_of(record: Record) -> tuple[Any, Any]:
    """The party that called and its ``ip:port``."""
    return record.get("subject"), record.get("source")


def server_of(record: Record) -> tuple[Any, Any]:
    """The party that was called and its ``ip:port``."""
    return record.get("peer"), record.get("destination")


def names_of(party: Any, endpoint: Any) -> set[str]:
    """Everything that people call a party: workload and address, each with and without the port."""
    address, _, port = endpoint.rpartition(":") if isinstance(endpoint, str) else ("", "", "")
    names = {address, address.strip("[]")}
    if isinstance(party, dict):
        names |= {name for name in (party.get("workload"), party.get("address")) if isinstance(name, str)}
    names.discard("")
    return names | {f"{name}:{port}" for name in names if port}


def _parse(text: str) -> Predicate:
    field, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r} is not FIELD=VALUE, for instance verdict=ALLOWED")
    return matcher(field, value)


def _same(field: str) -> Callable[[str], Predicate]:
    return lambda value: lambda record: str(record.get(field, "")).lower() == value.lower()


def _one_of(field: str, choices: Sequence[str]) -> Callable[[str], Predicate]:
    def make(value: str) -> Predicate:
        if value.lower() not in (choice.lower() for choice in choices):
            raise ValueError(f"{field} {value!r} is not one of {', '.join(choices)}")
        return _same(field)(value)

    return make


def _party(field: str, names: Callable[[Record], set[str]]) -> Callable[[str], Predicate]:
    def make(value: str) -> Predicate:
        if not _PARTY.fullmatch(value):
            raise ValueError(f"{field} {value!r} is not one workload or address; give the filter several times for several")
        return lambda record: value in names(record)

    return make


def _method(value: str) -> Predicate:
    if not _METHOD.fullmatch(value):
        raise ValueError(f"method {value!r} is not a method's name; give the filter several times for several")
    return _same("method")(value)


def _path(pattern: str) -> Predicate:
    if not pattern:
        raise ValueError("path '' matches every path; leave the filter out")
    options = re2.Options()
    options.log_errors = False
    try:
        regex = re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0].decode() if isinstance(error.args[0], bytes) else error.args[0]
        raise ValueError(f"bad regular expression {pattern!r}: {reason}") from None
    return lambda record: isinstance(record.get("path"), str) and regex.search(record["path"]) is not None


def _topic(value: str) -> Predicate:
    """A topic by its name, or any resource as records have it, such as ``group:billing``."""
    if not value:
        raise ValueError("topic '' is not a name")

    def matches(record: Record) -> bool:
        resources = record.get("resources")
        return isinstance(resources, list) and (f"topic:{value}" in resources or value in resources)

    return matches


def _status(value: str) -> Predicate:
    if value.lower() not in _STATUSES and not _STATUS.fullmatch(value.lower()):
        raise ValueError(f"status {value!r} is not a code (403, 5xx, grpc:7, kafka:29), nor one of {', '.join(_STATUSES)}")
    if value.lower().endswith("xx"):
        return lambda record: re.fullmatch(f"{value[0]}[0-9][0-9]", str(record.get("status"))) is not None
    return _same("status")(value)


FIELDS: dict[str, Callable[[str], Predicate]] = {
    "verdict": _one_of("verdict", VERDICTS),
    "protocol": _one_of("protocol", PROTOCOLS),
    "from": _party("from", lambda record: names_of(*client_of(record))),
    "to": _party("to", lambda record: names_of(*server_of(record))),
    "method": _method,
    "path": _path,
    "topic": _topic,
    "status": _status,
}

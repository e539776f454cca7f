"""Which records somebody asked for: the filters of ``sluice observe``.

A record is what JSON gave, a dictionary of anything: the file may be of another version, or of another program.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import re2

Record = Mapping[str, Any]
Predicate = Callable[[Record], bool]


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


def _path(pattern: str) -> Predicate:
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

    def matches(record: Record) -> bool:
        resources = record.get("resources")
        return isinstance(resources, list) and (f"topic:{value}" in resources or value in resources)

    return matches


def _status(value: str) -> Predicate:
    if re.fullmatch("[1-5]xx", value):
        return lambda record: re.fullmatch(f"{value[0]}[0-9][0-9]", str(record.get("status"))) is not None
    return _same("status")(value)


FIELDS: dict[str, Callable[[str], Predicate]] = {
    "verdict": _same("verdict"),
    "protocol": _same("protocol"),
    "from": lambda value: lambda record: value in names_of(*client_of(record)),
    "to": lambda value: lambda record: value in names_of(*server_of(record)),
    "method": _same("method"),
    "path": _path,
    "topic": _topic,
    "status": _status,
}

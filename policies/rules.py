"""L7 rules out of documents: one entry of ``rules.http`` or ``rules.grpc`` at a time."""

import re
from enum import StrEnum
from typing import TypeVar

import re2

from policies.kafka import KEYS_BY_WORD, ROLES
from policies.match import compile_pattern
from policies.model import (
    GrpcRule,
    HeaderMatch,
    HttpRule,
    KafkaRole,
    KafkaRule,
    Mismatch,
    NameMatch,
    PathKind,
    PathMatch,
    TopicKind,
    TopicMatch,
    ValueKind,
    ValueMatch,
)
from policies.nodes import Fields, Node, Report, Scalar, suggestion

# Longer than any path that servers accept by default; a longer pattern is a generated one that should be several rules.
MAX_PATTERN_CHARACTERS = 4096

HTTP_FIELDS = ("method", "path", "host", "headers", "headerMatches")
HTTP_EXTENSIONS = ("name", "deny", "mode", "pathPrefix", "pathTemplate", "query")
GRPC_FIELDS = ("service", "method", "metadata", "name", "deny", "mode")
KAFKA_FIELDS = ("role", "apiKey", "apiVersion", "clientID", "topic")
# A condition on a name, and one on how it begins.
GROUP = ("group", "groupPrefix")
TRANSACTIONAL_ID = ("transactionalID", "transactionalIDPrefix")
KAFKA_EXTENSIONS = ("name", "deny", "mode", "topicPrefix", "topicPattern", *GROUP, *TRANSACTIONAL_ID, "record")
MODES = ("enforce", "audit")
RECORDS = ("full", "summary")
MAX_API_VERSION = 0x7FFF  # an int16 on the wire

# RFC 9110 section 5.6.2: what a header's name may consist of.
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# RFC 9110 section 5.5 without obs-text: what a header's value may consist of, so that an edit cannot break the message.
_FIELD_VALUE = re.compile(r"[!-~]([\t -~]*[!-~])?")
# The gRPC-over-HTTP/2 document and the protobuf language: identifiers, with dots between them in a service.
_SERVICE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_METHOD = re.compile(r"[A-Za-z_]\w*", re.ASCII)
# What Cilium takes for a topic's name. No broker has one of more than `MAX_TOPIC` characters.
_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,255}")
MAX_TOPIC = 249
_API_VERSION = re.compile(r"0|[1-9][0-9]{0,4}")
_TEMPLATE = re.compile(r"(/([^{}/?#*\\]+|\{[A-Za-z_][A-Za-z0-9_]*\}))+/?|/")

# Headers that frame the message or steer proxies (RFC 9110 sections 7.6.1 and 7.8, RFC 9112 section 6): changing one would
# forward another message than the one that was judged.
UNTOUCHABLE_HEADERS = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)

_Kind = TypeVar("_Kind", bound=StrEnum)


class RuleReader:
    """Reads the L7 rules of one policy. ``extended``: the policy is an ApiPolicy, with its extensions."""

    def __init__(self, report: Report, namespace: str, extended: bool) -> None:
        self._report = report
        self._namespace = namespace
        self._extended = extended

    def http(self, node: Node, position: str) -> HttpRule | None:
        known = HTTP_FIELDS + HTTP_EXTENSIONS if self._extended else HTTP_FIELDS
        refused = dict.fromkeys(HTTP_EXTENSIONS, "is an extension: use apiVersion sluice.dev/v1, kind ApiPolicy")
        fields = self._report.fields(node, "an HTTP rule", known, refused)
        if fields is None:
            return None
        header_matches = self._header_matches(fields)
        deny = "deny" in fields and self._report.boolean(fields["deny"], "deny")
        if deny and header_matches:
            self._report.error(fields["headerMatches"].place, "SE006", "a deny rule cannot have headerMatches", "use headers")
        return HttpRule(
            name=self.name(fields, position),
            place=node.place,
            deny=deny,
            audit=self.audit(fields),
            headers=self._values(fields, "headers", header=True),
            path=self._path(fields),
            method=self._pattern(fields, "method"),
            host=self._pattern(fields, "host"),
            header_matches=header_matches,
            query=self._values(fields, "query", header=False),
        )

    def grpc(self, node: Node, position: str) -> GrpcRule | None:
        fields = self._report.fields(node, "a gRPC rule", GRPC_FIELDS)
        if fields is None:
            return None
        return GrpcRule(
            name=self.name(fields, position),
            place=node.place,
            deny="deny" in fields and self._report.boolean(fields["deny"], "deny"),
            audit=self.audit(fields),
            headers=self._values(fields, "metadata", header=True),
            service=self._identifier(fields, "service", _SERVICE, "pkg.Service, compared exactly"),
            method=self._identifier(fields, "method", _METHOD, "a method's name, compared exactly"),
        )

    def kafka(self, node: Node, position: str) -> KafkaRule | None:
        known = KAFKA_FIELDS + KAFKA_EXTENSIONS if self._extended else KAFKA_FIELDS
        refused = dict.fromkeys(KAFKA_EXTENSIONS, "is an extension: use apiVersion sluice.dev/v1, kind ApiPolicy")
        fields = self._report.fields(node, "a Kafka rule", known, refused)
        if fields is None:
            return None
        role, keys = self._apis(fields)
        deny = "deny" in fields and self._report.boolean(fields["deny"], "deny")
        summary = "record" in fields and self._report.choice(fields["record"], "record", RECORDS) == "summary"
        if summary and deny:
            hint = "denials are told one by one"
            self._report.error(fields["record"].place, "SE006", "a deny rule cannot have record: summary", hint)
        return KafkaRule(
            name=self.name(fields, position),
            place=node.place,
            deny=deny,
            audit=self.audit(fields),
            role=role,
            keys=keys,
            api_version=self._api_version(fields),
            client_id=self._report.string(fields["clientID"], "clientID") if "clientID" in fields else None,
            topic=self._topic(fields),
            group=self._name_or_prefix(fields, GROUP),
            transactional_id=self._name_or_prefix(fields, TRANSACTIONAL_ID),
            summary=summary,
        )

    def _apis(self, fields: dict[str, Node]) -> tuple[KafkaRole | None, frozenset[int] | None]:
        if "role" in fields and "apiKey" in fields:
            self._report.error(fields["apiKey"].place, "SE009", "role and apiKey in one rule", "make them two rules")
        if "role" in fields:
            # As Cilium, which takes any case.
            node = fields["role"]
            lower = Scalar(node.place, node.text.lower(), node.type) if isinstance(node, Scalar) else node
            word = self._report.choice(lower, "role", list(KafkaRole))
            return (KafkaRole(word), ROLES[KafkaRole(word)]) if word in list(KafkaRole) else (None, None)
        if "apiKey" not in fields:
            return None, None
        text = self._report.string(fields["apiKey"], "apiKey")
        if text is None:
            return None, None
        keys = KEYS_BY_WORD.get(text.lower())
        if keys is None:
            hint = suggestion(text.lower(), KEYS_BY_WORD) or "the name of an API, such as produce, fetch or metadata"
            self._report.error(fields["apiKey"].place, "SE006", f"apiKey is {text!r}, which is no API of Kafka", hint)
            return None, None
        return None, keys

    def _api_version(self, fields: dict[str, Node]) -> int | None:
        if "apiVersion" not in fields:
            return None
        node = fields["apiVersion"]
        is_number = isinstance(node, Scalar) and node.type in ("str", "int") and _API_VERSION.fullmatch(node.text)
        if isinstance(node, Scalar) and is_number and int(node.text) <= MAX_API_VERSION:
            return int(node.text)
        self._report.error(node.place, "SE006", "apiVersion is not a version", 'a number as a string, such as "7"')
        return None

    def _topic(self, fields: dict[str, Node]) -> TopicMatch | None:
        kind = self._only(fields, TopicKind)
        if kind is None:
            return None
        if kind is TopicKind.PATTERN:
            text = self._pattern(fields, kind.value)
            return None if text is None else TopicMatch(kind, text)
        text = self._report.string(fields[kind.value], kind.value)
        if text is None:
            return None
        if not is_topic(text):
            hint = "at most 255 of a-z, A-Z, 0-9, '.', '_' and '-'; topicPattern of an ApiPolicy takes an expression"
            self._report.error(fields[kind.value].place, "SE006", f"{kind.value} {text!r} is not a topic's name", hint)
        return TopicMatch(kind, text)

    def _name_or_prefix(self, fields: dict[str, Node], names: tuple[str, str]) -> NameMatch | None:
        given = [name for name in names if name in fields]
        if len(given) > 1:
            self._report.error(fields[given[1]].place, "SE009", f"{' and '.join(given)} in one rule", "make them two rules")
        field = given[0] if given else None
        text = None if field is None else self._report.string(fields[field], field)
        if field is None or text is None:
            return None
        return NameMatch(text, prefix=field == names[1])

    def name(self, fields: dict[str, Node], position: str) -> str:
        """The rule's own name, or its position in the document."""
        return (self._report.string(fields["name"], "name") if "name" in fields else None) or position

    def audit(self, fields: dict[str, Node]) -> bool:
        return "mode" in fields and self._report.choice(fields["mode"], "mode", MODES) == "audit"

    def _identifier(self, fields: dict[str, Node], field: str, grammar: re.Pattern[str], hint: str) -> str | None:
        text = self._report.string(fields[field], field) if field in fields else None
        if text is not None and not grammar.fullmatch(text):
            self._report.error(fields[field].place, "SE006", f"{field} {text!r} is not an identifier", hint)
        return text

    def _only(self, fields: dict[str, Node], kinds: type[_Kind]) -> _Kind | None:
        """The one of several fields that exclude each other, if there is one."""
        given = [kind for kind in kinds if kind.value in fields]
        if len(given) > 1:
            names = " and ".join(kind.value for kind in given)
            self._report.error(fields[given[1].value].place, "SE009", f"{names} in one rule", "make them two rules")
        return given[0] if given else None

    def _path(self, fields: dict[str, Node]) -> PathMatch | None:
        kind = self._only(fields, PathKind)
        if kind is None:
            return None
        node = fields[kind.value]
        if kind is PathKind.REGEX:
            text = self._pattern(fields, kind.value)
            return None if text is None else PathMatch(kind, text)
        text = self._report.string(node, kind.value)
        if text is None:
            return None
        if not text.isascii():
            self._report.error(node.place, "SE006", f"{kind.value} is not ASCII", "write it percent-encoded, as on the wire")
        if kind is PathKind.PREFIX and (not text.startswith("/") or any(c in text for c in "?#*\\") or "//" in text):
            self._report.error(
                node.place, "SE006", f"pathPrefix {text!r} is not a path", "a literal path such as /api, without wildcard"
            )
        if kind is PathKind.TEMPLATE and not _TEMPLATE.fullmatch(text):
            self._report.error(
                node.place,
                "SE006",
                f"pathTemplate {text!r} is not a template",
                "such as /users/{id}/orders",
            )
        return PathMatch(kind, text)

    def _pattern(self, fields: dict[str, Node], field: str) -> str | None:
        if field not in fields:
            return None
        text = self._report.string(fields[field], field)
        return text if text is not None and self._is_pattern(fields[field], field, text) else None

    def _is_pattern(self, node: Node, what: str, text: str) -> bool:
        if len(text) > MAX_PATTERN_CHARACTERS:
            self._report.error(node.place, "SE002", f"{what} is longer than {MAX_PATTERN_CHARACTERS} characters")
        elif not text.isascii():
            hint = "write the bytes on the wire, for instance \\xc3\\xa9 or %C3%A9"
            self._report.error(node.place, "SE010", f"{what} has characters that are not ASCII", hint)
        else:
            try:
                compile_pattern(text)
            except re2.error as error:
                # The binding gives RE2's own message, as bytes.
                reason = error.args[0].decode("latin-1") if isinstance(error.args[0], bytes) else str(error)
                hint = "for anything write .*, or leave the field out" if text == "*" else ""
                self._report.error(node.place, "SE010", f"{what} {text!r} is not an RE2 pattern: {reason}", hint)
            else:
                return True
        return False

    def _values(self, fields: dict[str, Node], field: str, header: bool) -> tuple[ValueMatch, ...]:
        """``headers``, ``metadata`` or ``query``: strings (headers only) or, as an extension, mappings."""
        if field not in fields:
            return ()
        found: list[ValueMatch] = []
        for item in self._report.items(fields[field], field):
            if isinstance(item, Fields) and self._extended:
                value = self._value_mapping(item, field, header)
            elif header:
                value = self._header_line(item, field)
            else:
                self._report.error(item.place, "SE004", f"an entry of {field} must be a mapping", "{name: page, value: '1'}")
                continue
            if value is not None:
                found.append(value)
        return tuple(found)

    def _header_line(self, node: Node, field: str) -> ValueMatch | None:
        text = self._report.string(node, f"an entry of {field}")
        if text is None:
            return None
        name, colon, value = text.partition(":")
        value = value.strip(" \t")
        if not self._is_header(node, name) or (colon and not self._is_value(node, value)):
            return None
        return ValueMatch(name.lower(), ValueKind.EXACT if colon else ValueKind.PRESENT, value)

    def _value_mapping(self, node: Node, field: str, header: bool) -> ValueMatch | None:
        fields = self._report.fields(node, f"an entry of {field}", ("name", "value", "regex", "prefix"))
        name_node = self._report.required(fields, "name", node.place, f"an entry of {field}")
        name = self._report.string(name_node, "name") if name_node is not None else None
        if fields is None or name_node is None or name is None or (header and not self._is_header(name_node, name)):
            return None
        given = [key for key in ("value", "regex", "prefix") if key in fields]
        if len(given) > 1:
            self._report.error(fields[given[1]].place, "SE009", f"{' and '.join(given)} in one entry", "make them two entries")
        if not given:
            return ValueMatch(name.lower() if header else name, ValueKind.PRESENT)
        kind = {"value": ValueKind.EXACT, "regex": ValueKind.REGEX, "prefix": ValueKind.PREFIX}[given[0]]
        text = self._report.string(fields[given[0]], given[0])
        if text is None or (kind is ValueKind.REGEX and not self._is_pattern(fields["regex"], "regex", text)):
            return None
        return ValueMatch(name.lower() if header else name, kind, text)

    def _header_matches(self, fields: dict[str, Node]) -> tuple[HeaderMatch, ...]:
        if "headerMatches" not in fields:
            return ()
        items = self._report.items(fields["headerMatches"], "headerMatches")
        found = (self._header_match(item) for item in items)
        return tuple(match for match in found if match is not None)

    def _header_match(self, node: Node) -> HeaderMatch | None:
        what = "an entry of headerMatches"
        fields = self._report.fields(node, what, ("name", "value", "secret", "mismatch"))
        name_node = self._report.required(fields, "name", node.place, what)
        name = self._report.string(name_node, "name") if name_node is not None else None
        if fields is None or name_node is None or name is None or not self._is_header(name_node, name):
            return None
        mismatch = Mismatch.FAIL
        if "mismatch" in fields and not _is_empty(fields["mismatch"]):
            mismatch = Mismatch(self._report.choice(fields["mismatch"], "mismatch", [m for m in Mismatch if m]) or "")
        value = self._report.string(fields["value"], "value") if "value" in fields else None
        if value is not None and not self._is_value(fields["value"], value):
            return None
        secret = self._secret(fields["secret"]) if "secret" in fields else None
        changes = mismatch in (Mismatch.ADD, Mismatch.DELETE, Mismatch.REPLACE)
        if changes and value is None and "secret" not in fields:
            self._report.error(node.place, "SE005", f"{mismatch} needs a value or a secret")
        if changes and name.lower() in UNTOUCHABLE_HEADERS:
            self._report.error(name_node.place, "SE006", f"{mismatch} of the header {name!r} would change the framing")
        return HeaderMatch(name.lower(), mismatch, value, secret)

    def _secret(self, node: Node) -> tuple[str, str] | None:
        fields = self._report.fields(node, "secret", ("name", "namespace"))
        name_node = self._report.required(fields, "name", node.place, "secret")
        if fields is None or name_node is None:
            return None
        name = self._report.string(name_node, "name")
        namespace = self._report.string(fields["namespace"], "namespace") if "namespace" in fields else self._namespace
        return (namespace, name) if name is not None and namespace is not None else None

    def _is_header(self, node: Node, name: str) -> bool:
        if _TOKEN.fullmatch(name):
            return True
        self._report.error(
            node.place, "SE006", f"{name!r} is not a header's name (RFC 9110 section 5.1)", '"Name: value" or "Name"'
        )
        return False

    def _is_value(self, node: Node, value: str) -> bool:
        if is_field_value(value):
            return True
        self._report.error(node.place, "SE006", "not a header's value (RFC 9110 section 5.5)", "visible ASCII, not empty")
        return False


def is_topic(text: str) -> bool:
    """Whether a text may be written for a topic's name."""
    return _TOPIC.fullmatch(text) is not None


def is_field_value(value: str) -> bool:
    """Whether a text can stand in a header: visible ASCII, with spaces and tabs only inside."""
    return _FIELD_VALUE.fullmatch(value) is not None


def _is_empty(node: Node) -> bool:
    """``mismatch: ""`` is how Cilium spells its default."""
    return isinstance(node, Scalar) and node.type == "str" and not node.text

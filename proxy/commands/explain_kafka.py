"""A Kafka request out of words, such as ``produce orders``, as the proxy would see it; a part of ``sluice explain``."""

import re
from typing import NamedTuple

import click

from parsers.contract import ApiCall
from parsers.kafka.connection import SUPPORTED, call_of
from parsers.kafka.layouts import REQUESTS
from parsers.kafka.request import OF_BROKERS_FROM, Named, Request, Topic
from policies.kafka import APIS, GROUP, RETIRED, TOPIC, TRANSACTIONAL_ID

# What else people call an API.
_ALIASES = {"consume": "Fetch", "offsets": "ListOffsets"}
_ALL_WITHOUT_NAMES = re.compile(r"[~!]|everything")
# An array of groups, of transactional ids, or of resources that have a configuration.
_NAMED = re.compile(r"\[(group|transactional|key)=s;\]|\bkind=")
# Whose configuration is meant when it is no topic's and no group's.
_BROKER = "broker:any"

# Groups that each have topics: without names of any, all of them.
_WHOLE_GROUPS = re.compile(r"\[group=s .*topics=")


class _Kind(NamedTuple):
    """How layouts (see layouts.py) say that a request names things of a kind, and that every real one does."""

    named: re.Pattern[str]
    needed: re.Pattern[str]


# FindCoordinator's key is a group or a transactional id.
_TOPICS = _Kind(re.compile(r"\b(topic|topicId|name)="), re.compile(r"^(?!.*\btopics=.*\]\?).*\b(topic|topicId)="))
_GROUPS = _Kind(re.compile(r"\b(group|key|kind)="), re.compile(r"\b(group|key)=s(?!\?)"))
_TRANSACTIONAL_IDS = _Kind(re.compile(r"\b(transactional|key)="), re.compile(r"\b(transactional|key)=s(?!\?)"))


class Options(NamedTuple):
    """What the command line says besides the API and its topics."""

    groups: tuple[str, ...] = ()
    transactional_ids: tuple[str, ...] = ()
    client_id: str | None = None
    api_version: int | None = None


class UnsupportedRequestError(Exception):
    """The proxy closes the connection on such a request, whatever policy says."""


def kafka_call(words: str, options: Options) -> ApiCall:
    """The call of ``API [TOPIC ...]``. Raises `click.UsageError` and `UnsupportedRequestError`, with the proxy's reason."""
    api, *topics = words.split() or [""]
    key = _key(api)
    lowest, highest = SUPPORTED.get(key, (1, 0))
    of_brokers_from = OF_BROKERS_FROM.get(key, highest + 1)
    version = of_brokers_from - 1 if options.api_version is None else options.api_version  # the newest that a client asks in
    if key not in REQUESTS:
        raise UnsupportedRequestError("unsupported-api")
    if not lowest <= version <= highest:
        raise UnsupportedRequestError("unsupported-version")
    name, layout = REQUESTS[key].name, _layout(key, version)
    all_topics = "everything" in layout or (not topics and _ALL_WITHOUT_NAMES.search(layout) is not None)
    for what, kind, given, optional in (
        ("a topic", _TOPICS, topics, all_topics),
        ("--group", _GROUPS, options.groups, bool(options.transactional_ids)),
        ("--transactional-id", _TRANSACTIONAL_IDS, options.transactional_ids, bool(options.groups)),
    ):
        if given and not kind.named.search(layout):
            raise click.UsageError(f"{name} takes no {what.removeprefix('a ')} in version {version}")
        if not given and not optional and kind.needed.search(layout):
            raise click.UsageError(f"{name} needs {what}: without, this says nothing of real requests")
    resources = tuple(
        dict.fromkeys(
            (
                *(f"{TOPIC}{topic}" for topic in topics),
                *(f"{GROUP}{group}" for group in options.groups),
                *(f"{TRANSACTIONAL_ID}{id_}" for id_ in options.transactional_ids),
            )
        )
    )
    if not resources and "kind=" in layout:
        resources = (_BROKER,)
    are_named = _NAMED.search(layout) or (not topics and _WHOLE_GROUPS.search(layout))
    named = tuple(Named(resource, 0, 0) for resource in resources) if are_named else ()
    request = Request(
        api_key=key,
        api=name,
        version=version,
        correlation_id=0,
        client_id=options.client_id,
        size=0,
        topics=tuple(Topic(topic, None, 0, 0) for topic in topics),
        groups=options.groups,
        transactional_ids=options.transactional_ids,
        all_topics=all_topics,
        array=(0, 0, len(named or topics)) if named or topics else None,
        named=named,
        of_brokers=version >= of_brokers_from,
    )
    return call_of(request, resources)


def _key(api: str) -> int:
    wanted = _ALIASES.get(api.lower(), api).lower()
    key = next((key for name, key in (APIS | RETIRED).items() if name.lower() == wanted), None)
    if key is None:
        raise click.UsageError(
            f"{api!r} is no API of Kafka: REQUEST is 'kafka API [TOPIC ...]', such as 'kafka produce orders'"
        )
    return key


def _layout(key: int, version: int) -> str:
    return next((layout for first, last, layout in REQUESTS[key].layouts if first <= version <= last), "")

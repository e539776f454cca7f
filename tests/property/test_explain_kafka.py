"""``sluice explain 'kafka …'`` asks policy exactly what the parser asks it about real requests that name the same things."""

from collections import Counter

import click
import pytest

from parsers.contract import ApiCall, Direction, Judge
from parsers.kafka.connection import SUPPORTED, KafkaParser
from parsers.kafka.layouts import REQUESTS
from parsers.kafka.request import Request, skim
from proxy.commands.explain_kafka import Options, kafka_call

from .kafka_words import Writer

FRAMES = 12  # per API and version


def in_words(request: Request) -> tuple[str, Options] | None:
    """None for what cannot be said on a command line: names that are ids, or empty, or with spaces."""
    names = [topic.name for topic in request.topics]
    if any(name is None or name.split() != [name] for name in names):
        return None
    words = " ".join([request.api, *(name for name in names if name is not None)])
    return words, Options(request.groups, request.transactional_ids, request.client_id, request.version)


def is_odd(request: Request) -> bool:
    """What words do not tell apart from more common requests: without names, all topics are meant where that can be."""
    layouts = " ".join(layout for *_, layout in REQUESTS[request.api_key].layouts)
    an_empty_list = not request.topics and not request.all_topics and "~" in layouts
    a_mixture = request.all_topics and ("regex" in layouts or (bool(request.topics) and "everything" not in layouts))
    a_cursor = request.api == "DescribeTopicPartitions" and request.array is None
    nobodys_configuration = "kind=" in layouts and not request.named
    of_the_cluster = nobodys_configuration or any(
        not one.resource.startswith(("topic:", "group:", "transactionalId:")) for one in request.named
    )
    a_followers = request.of_brokers and request.api in ("Fetch", "FindCoordinator")
    return an_empty_list or a_mixture or a_cursor or of_the_cluster or a_followers


def judged(frame: bytes) -> ApiCall | None:
    verbs = KafkaParser().on_data(Direction.REQUEST, frame, False)
    return next((verb.call for verb in verbs if isinstance(verb, Judge)), None)


def comparable(call: ApiCall) -> tuple[object, ...]:
    attributes = {name: value for name, value in call.attributes.items() if name != "principal"}
    return (
        call.method,
        call.resources,
        attributes,
        call.divisible,
        call.separate,
        call.all_topics,
        call.remainder,
        call.protocol,
    )


@pytest.mark.parametrize("key", SUPPORTED)
def test_a_request_out_of_words_is_the_request_that_the_parser_judges(key: int) -> None:
    low, high = SUPPORTED[key]
    seen = Counter[str]()
    for version in range(low, high + 1):
        writer = Writer(f"explain {key} {version}")
        for _ in range(FRAMES):
            frame = writer.frame(key, version)
            request, call = skim(frame), judged(frame)
            said = in_words(request)
            if call is None or said is None or (request.session or (0, 0))[1] > 0:
                seen["not to be said"] += 1  # the parser asks for names first, or goes on with what an earlier request said
                continue
            if is_odd(request):
                seen["odd"] += 1
                continue
            try:
                asked = kafka_call(*said)
            except click.UsageError:
                # A request may name nothing, or have a group that is null; no client's does.
                assert not (request.topics and (request.groups or request.transactional_ids))
                seen["says nothing"] += 1
                continue
            assert comparable(asked) == comparable(call), (said, frame)
            seen["compared"] += 1
    assert seen["compared"], seen

"""What the skimmer says of a Kafka request is what kafka-python and kio say, for every API and version, and for any split of
the bytes; and whatever the bytes, it says so in bounded time and never sees fewer topics than they do."""

import os
import time
from collections import Counter
from itertools import pairwise
from typing import TypeVar

import msgspec
import pytest

from parsers.kafka.frame import MalformedError, UnsupportedError
from parsers.kafka.layouts import REQUESTS
from parsers.kafka.request import Named, Request, Topic, look, skim

from .kafka_words import KAFKA_PYTHON, KIO, VERSIONS, Writer, facts_of, facts_of_kafka_python, facts_of_kio

SOAK = os.environ.get("SLUICE_SOAK") == "1"
FRAMES = 100 if SOAK else 4  # per API and version
MUTATIONS = 100_000 if SOAK else 4_000
pytestmark = pytest.mark.timeout(3600 if SOAK else 120)

Outcome = Request | str


def read(frame: bytes) -> Outcome:
    try:
        return skim(frame)
    except (MalformedError, UnsupportedError) as error:
        return repr(error)


def looked(data: bytes) -> Outcome | int:
    """What ``look`` says, without the ends of what may not have been read."""
    try:
        return without_ends(look(data))
    except (MalformedError, UnsupportedError) as error:
        return repr(error)


Element = TypeVar("Element", Topic, Named)


def without_ends(found: Request | int) -> Request | int:
    if isinstance(found, int):
        return found

    def cut(elements: tuple[Element, ...]) -> tuple[Element, ...]:
        return tuple(msgspec.structs.replace(element, end=0) for element in elements)

    return msgspec.structs.replace(found, topics=cut(found.topics), named=cut(found.named), forgotten=cut(found.forgotten))


def test_every_api_and_version_has_an_oracle() -> None:
    compared = Counter("both" if key in KAFKA_PYTHON and v in KIO.get(key, ()) else "one" for key, v in VERSIONS)
    print(f"{len(VERSIONS)} versions of {len(REQUESTS)} APIs: {compared['both']} by both packages, {compared['one']} by one")
    assert all(key in KAFKA_PYTHON or version in KIO.get(key, ()) for key, version in VERSIONS)
    assert compared["both"] > len(VERSIONS) / 2


@pytest.mark.parametrize("key", REQUESTS)
def test_what_is_skimmed_is_what_both_oracles_read(key: int) -> None:
    seen = Counter[str]()
    for version in (version for api, version in VERSIONS if api == key):
        writer = Writer(f"{key} {version}")
        for _ in range(FRAMES):
            frame = writer.frame(key, version)
            request = skim(frame)
            assert (request.api_key, request.version, request.size) == (key, version, len(frame))
            assert request.api == REQUESTS[key].name
            facts = facts_of(request)
            for oracle in (facts_of_kafka_python, facts_of_kio):
                expected = oracle(frame)
                if expected is not None:
                    assert facts == expected, (request.api, version, frame)
                    seen[oracle.__name__] += 1
    assert seen


@pytest.mark.parametrize("key", REQUESTS)
def test_any_split_gives_the_same_request_and_no_sooner_than_it_is_determined(key: int) -> None:
    for version in (version for api, version in VERSIONS if api == key):
        frame = Writer(f"split {key} {version}").frame(key, version)
        whole = without_ends(skim(frame))
        assert isinstance(whole, Request)
        for length in {*range(min(len(frame), 200)), *range(whole.determined - 2, len(frame), 7), len(frame)}:
            found = looked(frame[:length])
            if length >= whole.determined:
                assert found == whole, (version, length)
            else:
                assert isinstance(found, int), (version, length)
                assert length < found <= len(frame), (version, length)
        assert looked(frame + b"the next frame") == whole
        # Nothing behind what determines it has a say.
        assert looked(frame[: whole.determined] + b"\xff" * (len(frame) - whole.determined)) == whole


@pytest.mark.parametrize("key", REQUESTS)
def test_ranges_of_what_is_told_apart_are_those_of_its_elements(key: int) -> None:
    """Each range by itself, behind a count of one, is a sound request for just that topic, group and so on."""
    for version in (version for api, version in VERSIONS if api == key):
        writer = Writer(f"ranges {key} {version}")
        for _ in range(FRAMES):
            frame = writer.frame(key, version)
            request = skim(frame)
            elements = request.elements
            if request.array is None or not elements:
                continue
            start, end, number = request.array
            assert number == len(elements)
            assert elements[0].start == end
            assert all(a.end == b.start for a, b in pairwise(elements))
            one = b"\x02" if version >= REQUESTS[key].flexible else b"\0\0\0\1"
            for element in elements:
                rest = frame[4:start] + one + frame[element.start : element.end] + frame[elements[-1].end :]
                alone = skim(len(rest).to_bytes(4, "big") + rest)
                assert list(map(word, alone.elements)) == [word(element)]


def word(element: Topic | Named) -> object:
    return element.resource if isinstance(element, Named) else (element.name, element.topic_id)


@pytest.mark.parametrize("key", REQUESTS)
def test_what_is_told_apart_is_what_policy_is_asked_about(key: int) -> None:
    """No topic, group or transactional id is among the elements and not in the lists, or the other way round."""
    for version in (version for api, version in VERSIONS if api == key):
        writer = Writer(f"named {key} {version}")
        for _ in range(FRAMES):
            request = skim(writer.frame(key, version))
            if not request.named:
                continue
            assert request.array is not None
            told = sorted(
                one.resource for one in request.named if one.resource.startswith(("topic", "group", "transactionalId"))
            )
            listed = [f"topic:{topic.name}" for topic in request.topics]
            listed += [f"group:{group}" for group in request.groups]
            assert told == sorted(listed + [f"transactionalId:{id_}" for id_ in request.transactional_ids])


def test_whatever_the_bytes_no_topic_is_missed_and_nothing_escapes() -> None:
    """A mutated request is refused, or it is read as the oracles read it if they read it at all.

    kafka-python skips nothing by its length that it knows, as Kafka itself does not, so it finds what a false length hides.
    """
    outcomes = Counter[str]()
    slowest = 0.0
    writer = Writer("mutations")
    for _ in range(MUTATIONS):
        frame = writer.mutated(writer.any_frame())
        begun = time.thread_time()
        request = read(frame)
        slowest = max(slowest, time.thread_time() - begun)
        if isinstance(request, str):
            outcomes["refused"] += 1
            continue
        outcomes["read"] += 1
        facts = facts_of(request)
        for oracle in (facts_of_kafka_python, facts_of_kio):
            try:
                expected = oracle(frame)
            except Exception as error:
                outcomes[f"{oracle.__name__} refuses: {type(error).__name__}"] += 1
                continue
            if expected is not None:
                assert facts == expected, (request.api, request.version, frame)
                outcomes[f"{oracle.__name__} agrees"] += 1
    print(f"{MUTATIONS} mutations: {dict(outcomes)}; slowest {slowest * 1e3:.2f} ms")
    assert outcomes["read"] > MUTATIONS / 20
    assert outcomes["refused"] > MUTATIONS / 5
    assert outcomes["facts_of_kafka_python agrees"] > outcomes["read"] / 2
    assert slowest < 1


def test_whatever_the_bytes_any_split_gives_the_same_outcome() -> None:
    writer = Writer("mutated splits")
    for _ in range(MUTATIONS // 40):
        frame = writer.mutated(writer.any_frame())[:300]
        last: Outcome | int = 0
        for length in range(len(frame) + 1):
            found = looked(frame[:length])
            if isinstance(last, int):
                assert not isinstance(found, int) or found > length
            else:
                assert found == last, (length, frame)
            last = found

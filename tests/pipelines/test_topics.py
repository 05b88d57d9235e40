"""The topic as part of an event id: a message's own id is unique within its topic only."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from google.api_core.exceptions import PermissionDenied
from google.cloud import pubsub_v1
from google.pubsub_v1.services.subscriber import SubscriberClient

from murmur_beam.errors import ConfigurationError
from murmur_beam.model import DeadLetter, Key
from murmur_beam.monoids import Count
from murmur_beam.options import MergeOptions, add_flags
from murmur_beam.programs import pubsub, replay, worker
from murmur_beam.pubsub.client import topic_of
from murmur_beam.pubsub.messages import merge_options, needs_source, with_source
from murmur_beam.state.sqlite import SqliteSpec
from murmur_beam.testing import emulators
from tests.support import programs
from tests.support.programs import letters_in
from tests.support.topics import Topic, new_topic

COUNT = ["--store=sqlite:///counts.db", "--key=page", "--monoid=count"]
IDLE = ["--until_idle=1s", "--backoff_base=1ms", "--backoff_max=10ms"]
OTHER = "projects/test-project/topics/other"


class Ran(NamedTuple):
    """The result of a run."""

    code: int
    out: list[str]
    err: list[str]


Run = Callable[..., Ran]


@pytest.fixture
def topic(pubsub_host: str) -> Topic:
    """The topic that is read."""
    return new_topic()


@pytest.fixture
def run(run: Callable[..., programs.Ran], own_folder: Path) -> Run:
    """Runs a program in this process, in a folder of its own."""

    def call(*argv: str, program: ModuleType = worker, flags: Sequence[str] = (*COUNT, *IDLE)) -> Ran:
        ran = run(program, *flags, *argv)
        lines = [line for line in ran.err.splitlines() if not line.startswith("warning: ")]
        return Ran(ran.code, ran.out.splitlines(), lines)

    return call


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Subscriptions may be read, but not looked up, as with the role "Pub/Sub Subscriber"."""

    def refuse(*args: Any, **more: Any) -> Any:
        raise PermissionDenied("pubsub.subscriptions.get")

    monkeypatch.setattr(SubscriberClient, "get_subscription", refuse)


def state(path: str = "counts.db") -> dict[str, int]:
    """The content of the store."""
    with closing(SqliteSpec(path).open(Count())) as store:
        return {key.entity: total for key, total in store.scan()}


EVENTS = [json.dumps({"page": "p", "n": n}).encode() for n in range(5)]


@pytest.mark.parametrize(
    ("flags", "merged"),
    [([], 10), (["--event_id=message:id"], 10), (["--id_format=plain"], 5), (["--event_id=n"], 5)],
    ids=["default", "named", "plain", "a field"],
)
def test_equal_ids_of_two_topics_are_two_events(
    run: Run, monkeypatch: pytest.MonkeyPatch, flags: list[str], merged: int
) -> None:
    """No event with its message's id is lost, unless bare ids are requested. Two emulators stand for two topics, since
    one counts ids for all of its topics."""
    numbered = [json.dumps({"page": "p", "n": f"n{n}"}).encode() for n in range(5)]
    for _ in range(2):
        with emulators.pubsub() as host:
            monkeypatch.setenv("PUBSUB_EMULATOR_HOST", host)
            topic = new_topic()
            topic.publish(*numbered)
            assert run(f"--subscription={topic.subscription}", *flags).code == 0
    assert state() == {"p": merged}


def test_two_subscriptions_of_a_topic_count_once(topic: Topic, run: Run) -> None:
    """The id begins with the topic and not with the subscription, which may be replaced by another."""
    with pubsub_v1.SubscriberClient() as client:
        client.create_subscription(name=f"{topic.subscription}-2", topic=topic.name)
    topic.publish(*EVENTS)
    assert run(f"--subscription={topic.subscription}").out == ["5 merged / 0 duplicate / 0 dead-lettered"]
    assert run(f"--subscription={topic.subscription}-2").out == ["0 merged / 5 duplicate / 0 dead-lettered"]


def test_the_flag_gives_the_same_ids_as_a_lookup(topic: Topic, run: Run) -> None:
    """An event that is merged with one is a duplicate with the other; short names get the project."""
    with pubsub_v1.SubscriberClient() as client:
        client.create_subscription(name=f"{topic.subscription}-2", topic=topic.name)
    topic.publish(*EVENTS)
    named = ["--project=test-project", f"--topic={topic.name.rpartition('/')[2]}"]
    assert run(f"--subscription={topic.subscription}", *named).out == ["5 merged / 0 duplicate / 0 dead-lettered"]
    assert run(f"--subscription={topic.subscription}-2").out == ["0 merged / 5 duplicate / 0 dead-lettered"]


MISSING = "--topic: is missing: a message's id is unique within its topic only, and the topic of {} is unknown"


@pytest.mark.usefixtures("forbidden")
class TestWhereTheSubscriptionMayNotBeLookedAt:
    """The topic must be named, and only where it is needed."""

    def test_one_line_names_the_flag_and_the_other_way(self, topic: Topic, run: Run) -> None:
        """Before any message is touched."""
        topic.publish(*EVENTS)
        ran = run(f"--subscription={topic.subscription}")
        assert (ran.code, ran.out) == (2, [])
        (line,) = ran.err
        assert line.startswith(f"worker: error: {MISSING.format(topic.subscription)}")
        assert "--id_format plain" in line
        assert len(topic.left(5)) == 5

    @pytest.mark.parametrize(
        "flag", ["--topic={topic}", "--id_format=plain", "--event_id=n", "--dedup=none", "--source=eu"]
    )
    def test_any_of_these_is_enough(self, topic: Topic, run: Run, flag: str) -> None:
        """The topic, the bare id, an event id of the user's, no dedup, or another prefix."""
        topic.publish(*EVENTS)
        ran = run(f"--subscription={topic.subscription}", flag.format(topic=topic.name))
        assert ran.out == ["5 merged / 0 duplicate / 0 dead-lettered"]

    def test_the_dead_letter_topic_is_not_the_one_that_is_read(self, topic: Topic, run: Run) -> None:
        """As far as the flag shows."""
        ran = run(f"--subscription={topic.subscription}", f"--topic={topic.name}", f"--dead_letter_topic={topic.name}")
        assert ran.err == [
            "worker: error: --dead_letter_topic: is the topic that is read: each dead letter would be read again, "
            "forever; name another topic"
        ]

    def test_pubsub_requires_it_too(self, topic: Topic, run: Run) -> None:
        """Also for Dataflow, where a launcher may not look up subscriptions."""
        ran = run(f"--subscription={topic.subscription}", "--dead_letters=d", program=pubsub, flags=COUNT)
        assert (ran.code, ran.out) == (2, [])
        (line,) = ran.err
        assert line.startswith(f"pubsub: error: {MISSING.format(topic.subscription)}")


def test_a_topic_that_was_deleted(topic: Topic, run: Run) -> None:
    """Its remaining messages in the subscription are merged once the user gives its name, or requests bare ids."""
    topic.publish(*EVENTS)
    with pubsub_v1.PublisherClient() as client:
        client.delete_topic(topic=topic.name)
    assert topic_of(topic.subscription) is None
    ran = run(f"--subscription={topic.subscription}")
    assert ran.code == 2
    assert ran.err[0].startswith(f"worker: error: {MISSING.format(topic.subscription)}")
    ran = run(f"--subscription={topic.subscription}", f"--topic={topic.name}")
    assert ran.out == ["5 merged / 0 duplicate / 0 dead-lettered"]


def test_letters_keep_their_ids_in_a_replay(topic: Topic, run: Run) -> None:
    """Whatever their prefix; so an event that was merged meanwhile is a duplicate."""
    (bad, *_) = topic.publish(b'{"n": 1}', b'{"page": "p", "n": 2}')
    assert run(f"--subscription={topic.subscription}").out[0] == "1 merged / 0 duplicate / 1 dead-lettered"
    (letter,) = letters_in("dead-letters.jsonl")
    assert letter.event_id == f"{topic.name}/{bad}"
    with closing(SqliteSpec("counts.db").open(Count())) as store:
        store.merge_update(Key("p"), 1, event_id=letter.event_id)
    flags = [COUNT[0], "--key==p", "--monoid=count", "--input=dead-letters.jsonl"]
    assert run(program=replay, flags=flags).out == ["0 merged / 1 duplicate / 0 dead-lettered"]
    assert state() == {"p": 2}


@pytest.mark.parametrize("flags", [[], ["--source=somewhere"], ["--event_id=message:id"]], ids=str)
def test_letters_with_bare_ids_keep_them(run: Run, flags: list[str]) -> None:
    """As 0.1.0 wrote them: a replay neither adds a topic nor takes them for other events."""
    letter = DeadLetter(
        *(b'{"page": "p"}', "pubsub", {}, "17", None, None, "murmur", "merge", "17", None, ["p"], ["p"]),
        *("TransientError", "busy", 3, "2026-11-23T10:00:00.000000Z"),
    )
    Path("dead-letters.jsonl").write_text(f"{letter.to_json()}\n")
    again = [*COUNT, "--input=dead-letters.jsonl", *flags]
    assert run(program=replay, flags=again).out == ["1 merged / 0 duplicate / 0 dead-lettered"]
    assert run(program=replay, flags=again).out == ["0 merged / 1 duplicate / 0 dead-lettered"]
    with closing(SqliteSpec("counts.db").open(Count())) as store:
        assert str(store.merge_update(Key("p"), 1, event_id="17")) == "duplicate"


def test_the_pipeline_is_built_with_the_topic(topic: Topic, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """`murmur pubsub` puts it before the id as the worker does, so that both may write to one table."""
    built: list[MergeOptions] = []

    def build(pipeline: Any, subscription: str, merge: MergeOptions, **more: Any) -> None:
        built.append(merge)
        raise ConfigurationError("--stop", "here")

    monkeypatch.setattr(pubsub, "build", build)
    flags = [f"--subscription={topic.subscription}", "--dead_letters=d", *COUNT]
    for more in ([], [f"--topic={OTHER}"], ["--id_format=plain"], ["--event_id=n"], ["--source=eu"]):
        run(program=pubsub, flags=[*flags, *more])
    assert [merge.source for merge in built] == [topic.name, OTHER, None, None, "eu"]


def options(*flags: str) -> MergeOptions:
    """The options of the merge, from flags."""
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return merge_options(parser.parse_args([*COUNT, *flags]))


@pytest.mark.parametrize(
    ("flags", "needed"),
    [
        ([], True),
        (["--event_id=message:id"], True),
        (["--event_id=id"], False),
        (["--event_id=attribute:id"], False),
        (["--id_format=plain"], False),
        (["--id_format=escaped"], True),
        (["--source=eu"], False),
        (["--dedup=none"], False),
    ],
    ids=str,
)
def test_the_topic_is_needed_for_ids_of_messages(flags: list[str], needed: bool) -> None:
    """Where events have their messages' ids and no other flag decides; otherwise nothing is added."""
    given = options(*flags)
    assert needs_source(given) is needed
    sourced = {**given.given(), "source": OTHER} if needed else given.given()
    assert with_source(given, OTHER, "s").given() == sourced
    if needed:
        with pytest.raises(ConfigurationError, match=r"^--topic: is missing"):
            with_source(given, None, "s")
    else:
        assert with_source(given, None, "s") is given

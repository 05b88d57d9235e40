"""`MergeRecords` on a real runner, with messages of Pub/Sub."""

from __future__ import annotations

from datetime import timedelta

import apache_beam as beam
import pytest
from apache_beam.io.gcp.pubsub import PubsubMessage

from murmur_beam.errors import (
    ConfigurationError,
)
from murmur_beam.model import DeadLetter, Key, MergeResult
from murmur_beam.processor import Config, NoDedup
from murmur_beam.state.memory import MemorySpec
from murmur_beam.transforms import MergeRecords
from murmur_beam.windows import daily
from tests.support.strategies import START
from tests.support.transform import (
    FIELDS,
    NOW_S,
    Faulty,
    collect,
    collected,
    event,
    new_pipeline,
    run,
    sums,
)


def message(data: bytes | None, event_id: str = "m1", **attributes: str) -> PubsubMessage:
    """A message as a subscription delivers it."""
    return PubsubMessage(data, attributes, event_id, START, "order")


def test_pubsub_messages(store: Faulty) -> None:
    """Fields, attributes and the message's id must be found, and the message itself be output."""
    arguments = {
        "keys": ["user/{user.id}", "attribute:country"],
        "value": "v",
        "event_id": "message:id",
        "event_time": "message:publish_time",
        "window": daily(),
        "store": store.spec,
    }
    good = message(b'{"user": {"id": 7}, "v": 2}', country="\xfc")
    ran = run([good, good], **arguments)
    assert ran.outcomes() == {"merged": 1, "duplicate": 1}
    assert [result.element for result in ran.results] == [good, good]
    assert store.state() == {("user/7", NOW_S // 86_400): 2, ("\xfc", NOW_S // 86_400): 2}


@pytest.mark.parametrize("config", [None, Config(max_attempts=5), Config().with_backoff(timedelta(0), timedelta(1))])
def test_it_is_exactly_once_whatever_else_its_config_says(store: Faulty, config: Config | None) -> None:
    """Dedup is on unless it is turned off by name."""
    ran = run([event("1"), event("1")], **FIELDS, store=store.spec, config=config)
    assert ran.outcomes() == {"merged": 1, "duplicate": 1}


def test_dedup_is_turned_off_by_name(memory: MemorySpec) -> None:
    """Each delivery counts then, and no id is needed."""
    fields = {name: field for name, field in FIELDS.items() if name != "event_id"}
    for config in (None, Config(max_attempts=5)):
        with pytest.raises(ConfigurationError, match=r"^event_id: is missing.*NoDedup\(\)"):
            run([event("1")], **fields, store=memory, config=config)
    ran = run([event("1"), event("1")], **fields, store=memory, config=Config(dedup=NoDedup()))
    assert ran.outcomes() == {"merged": 2}
    assert sums(memory) == {Key("a"): 2}


def test_a_message_s_own_id_is_the_event_id(memory: MemorySpec) -> None:
    """If none is named, an event has the id that Pub/Sub gave its message; but only where an id is needed."""

    def merged(*sent: PubsubMessage, config: Config | None = None) -> list[MergeResult]:
        pipeline = new_pipeline()
        read = pipeline | beam.Create(sent) | beam.Map(lambda sent: sent).with_output_types(PubsubMessage)
        outputs = read | MergeRecords(key="=all", value="v", store=memory, config=config)
        results = collect(outputs.merged, "merged")
        pipeline.run().wait_until_finish()
        return [out.value for out in collected(results)]

    results = merged(message(b'{"v": 2}', "m1"), message(b'{"v": 2}', "m1"), message(b'{"v": 3}', "m2"))
    assert [(result.event_id, str(result.outcome)) for result in results] == [
        ("m1", "merged"),
        ("m1", "duplicate"),
        ("m2", "merged"),
    ]
    assert sums(memory) == {Key("all"): 5}
    (result,) = merged(message(b'{"v": 2}', ""), config=Config(dedup=NoDedup()))
    assert (result.event_id, str(result.outcome)) == (None, "merged")


@pytest.mark.parametrize("data", [b"\xff\x00\n", b'{"v": 1', b""], ids=["binary", "json", "empty"])
def test_pubsub_messages_are_replayed_byte_for_byte(store: Faulty, data: bytes) -> None:
    """A dead letter must hold the whole message, and a replay must process exactly the same message."""
    arguments = {"key": "k", "value": "v", "event_id": "message:id", "store": store.spec}
    sent = message(data, a="b", ü="")
    letter = run([sent], **arguments).letter
    assert (letter.payload, letter.payload_type, letter.attributes) == (data, "pubsub", {"a": "b", "\xfc": ""})
    assert (letter.message_id, letter.publish_time, letter.ordering_key) == (
        "m1",
        "2023-11-14T22:13:20.000000Z",
        "order",
    )
    mended = {**arguments, "decode": lambda element: {"k": "a", "v": len(element.data)}}
    (result,) = run([DeadLetter.from_json(letter.to_json())], **mended).results
    # The message's own equality ignores some of it.
    assert (result.element, result.element.publish_time, result.element.ordering_key) == (sent, START, "order")
    assert (result.event_id, store.state()) == ("m1", {("a", 0): len(data)})

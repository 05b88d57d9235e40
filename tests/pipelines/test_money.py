"""Amounts of money through `MergeRecords`: exact from messages to the store, to dead letters, and back by a replay."""

from __future__ import annotations

import json
import random
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from murmur_beam.model import DeadLetter
from murmur_beam.monoids import Sum
from murmur_beam.reader import Reader
from murmur_beam.state.sqlite import SqliteSpec
from tests.support.transform import FIELDS, event, run

CENTS = Sum(places=2)
ARGUMENTS: dict[str, Any] = {**FIELDS, "monoid": CENTS}
LARGEST = "92233720368547758.07"


@pytest.fixture
def spec(tmp_path: Path) -> SqliteSpec:
    """A new file."""
    return SqliteSpec(str(tmp_path / "money.db"))


def shown(spec: SqliteSpec) -> dict[str, str]:
    """Sums by key."""
    with Reader.open(spec) as reader:
        return {key: str(amount) for key, amount, _ in reader.list()}


def messages(texts: list[str], key: str) -> list[bytes]:
    """JSON whose numbers are written as given."""
    return [f'{{"id": "{key}{n}", "k": "{key}", "v": {text}}}'.encode() for n, text in enumerate(texts)]


def test_all_forms_add_up_to_the_cent(spec: SqliteSpec) -> None:
    """Numbers of JSON, texts, decimals and floats of the same amounts, some negative, give the sum of `decimal`."""
    chance = random.Random(3)
    texts = [f"{chance.choice(('', '-'))}{chance.randrange(10**9)}.{chance.randrange(100):02}" for _ in range(300)]
    elements: list[Any] = messages(texts, "number") + messages([f'"{text}"' for text in texts], "text")
    for n, text in enumerate(texts):
        elements += [event(f"d{n}", "decimal", Decimal(text)), event(f"f{n}", "float", float(text))]
    assert run(elements, **ARGUMENTS, store=spec).outcomes() == {"merged": 1200}
    expected = str(sum(map(Decimal, texts)))
    assert shown(spec) == dict.fromkeys(("number", "text", "decimal", "float"), expected)


def test_an_amount_that_a_float_would_round(spec: SqliteSpec) -> None:
    """A number of JSON is taken as it is written, also by a function of the record."""
    (message,) = messages(["90071992547409930.01"], "a")
    assert run([message], **{**ARGUMENTS, "value": lambda record: record["v"]}, store=spec).outcomes() == {"merged": 1}
    assert run([message], **ARGUMENTS, store=spec).outcomes() == {"duplicate": 1}
    assert shown(spec) == {"a": "90071992547409930.01"}


def test_a_refused_amount_is_replayed_as_it_was_written(spec: SqliteSpec) -> None:
    """With more places it is a dead letter, whose payload is unchanged; its replay into another table is exact."""
    elements = [*messages(["0.0000000000000000001", "90071992547409.9301"], "a"), event("d", "a", Decimal("0.0001"))]
    ran = run(elements, **ARGUMENTS, store=spec)
    assert ran.outcomes() == {"dead_letter": 3}
    tiny, fine, decimal = sorted(ran.letters, key=lambda letter: str(letter.event_id))
    assert tiny.error_message == (
        "value: 1E-19 has more than 2 decimal places; round it, or use a sum with more places"
    )
    assert [letter.stage for letter in ran.letters] == ["extract"] * 3
    assert fine.payload == elements[1]
    assert decimal.payload_type == "pickle"
    lines = [DeadLetter.to_json(letter) for letter in (fine, decimal)]
    letters = [DeadLetter.from_json(line) for line in lines]
    finer = {**ARGUMENTS, "monoid": Sum(places=4), "store": SqliteSpec(spec.path, "finer")}
    assert run(letters, **finer, unpickle=True).outcomes() == {"merged": 2}
    assert shown(SqliteSpec(spec.path, "finer")) == {"a": "90071992547409.9302"}


def test_an_overflow_is_a_dead_letter(spec: SqliteSpec) -> None:
    """Of its event alone; once there is room, its replay merges exactly the amount that it holds."""
    (first,) = messages([LARGEST], "a")
    run([first], **ARGUMENTS, store=spec)
    ran = run([b'{"id": "x", "k": "a", "v": 0.01}', b'{"id": "y", "k": "b", "v": 0.01}'], **ARGUMENTS, store=spec)
    assert ran.outcomes() == {"merged": 1, "dead_letter": 1}
    assert (ran.letter.stage, ran.letter.error_type, ran.letter.failed_keys) == ("merge", "Overflow", ["a"])
    assert ran.letter.error_message.startswith("value: the sum would be 92233720368547758.08, which does not fit")
    assert json.loads(ran.letter.payload)["v"] == 0.01
    run([event("z", "a", "-1.00")], **ARGUMENTS, store=spec)
    assert run([ran.letter, ran.letter], **ARGUMENTS, store=spec).outcomes() == {"merged": 1, "duplicate": 1}
    assert shown(spec) == {"a": "92233720368547757.08", "b": "0.01"}

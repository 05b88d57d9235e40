"""`MergeRecords` as the tests run it: elements, stores within reach of a test, a runner, and a driver of bundles."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar, NamedTuple

import apache_beam as beam
from apache_beam.metrics import MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import TaggedOutput
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms import window as beam_window
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import WindowedValue

from murmur_beam.errors import (
    TransientError,
)
from murmur_beam.model import DeadLetter, Key, MergeResult, Outcome, Update
from murmur_beam.monoids import Sum
from murmur_beam.monoids.base import Monoid
from murmur_beam.options import MergeOptions
from murmur_beam.processor import AtomicDedup, Config
from murmur_beam.reader import Reader
from murmur_beam.spec import resolve
from murmur_beam.state.base import Result, Schema, Store, StoreSpec
from murmur_beam.state.memory import MemoryStore
from murmur_beam.testing import FakeClock, FaultyStore
from murmur_beam.transforms import MergeDoFn, MergeRecords
from murmur_beam.windows import WindowConfig
from tests.support.recording import RecordingStore
from tests.support.strategies import START

DAY = timedelta(days=1)
NOW_S = int(START.timestamp())
BUSY = TransientError("busy")
FIELDS: dict[str, Any] = {"key": "k", "value": "v", "event_id": "id"}
"""The arguments that fit `event`."""


def event(event_id: object, key: object = "a", value: object = 1, **more: object) -> dict[str, object]:
    """An element that `FIELDS` fits."""
    return {"id": event_id, "k": key, "v": value, **more}


def config(**changes: Any) -> Config:
    """Exactly once, two tries, at a time that stands still."""
    return Config(**{"max_attempts": 2, "dedup": AtomicDedup(), "clock": FakeClock(jitter=0), **changes})


# Stores that a test can reach. The runner uses threads of this process, so only a name is pickled.

_shelf: dict[str, Store[Any]] = {}


@dataclass(frozen=True)
class OnShelf:
    """A store that the test has put on the shelf, under a name that can be pickled."""

    name: str
    opened: ClassVar[Counter[str]] = Counter()

    @classmethod
    def put(cls, store: Store[Any]) -> OnShelf:
        """Under a name of its own."""
        spec = cls(uuid.uuid4().hex)
        _shelf[spec.name] = store
        return spec

    def drop(self) -> None:
        """Take the store off the shelf."""
        del _shelf[self.name]

    def open(self, monoid: Monoid[Any], granularity: timedelta | None = None) -> Store[Any]:
        self.opened[self.name] += 1
        return _shelf[self.name]

    def recorded_schema(self) -> Schema | None:
        return None


class Faulty(FaultyStore[int]):
    """Sums in memory that fail by a plan, count how often they are closed, and keep a ledger of merged events.

    The ledger stands below the faults: it also knows of writes whose answer was lost. One that ``appends`` answers
    RECORDED.
    """

    def __init__(
        self,
        clock: FakeClock | None = None,
        fault: Callable[[Update], Exception | None] = lambda update: None,
        lost: Callable[[Update], Exception | None] = lambda update: None,
        *,
        appends: bool = False,
    ) -> None:
        self.ledger = Ledger(MemoryStore(Sum(), clock or FakeClock()))
        super().__init__(RecordingStore(self.ledger) if appends else self.ledger, fault, lost)
        self.spec = OnShelf.put(self)
        self.closed = 0
        self.waits_for_network = False

    def close(self) -> None:
        self.closed += 1

    def state(self) -> dict[tuple[str, int], int]:
        """All sums, by entity and bucket."""
        return {tuple(key): total for key, total in self.scan()}


class Ledger(FaultyStore[int]):
    """Records each event that a store has merged under each key."""

    def __init__(self, store: Store[int]) -> None:
        super().__init__(store)
        self.merged: dict[tuple[Key, str | None], int] = {}

    def merge_updates(self, updates: Sequence[Update]) -> list[Result]:
        results = super().merge_updates(updates)
        for update, result in zip(updates, results, strict=True):
            if result is Outcome.MERGED:
                assert (update.key, update.event_id) not in self.merged, f"{update} merged twice"
                self.merged[update.key, update.event_id] = update.delta
        return results


def failing(**times: int) -> Callable[[Update], Exception | None]:
    """A plan of faults: the given number of writes to a key fail, later ones succeed."""

    def fault(update: Update) -> Exception | None:
        left = times.get(update.key.entity, 0)
        times[update.key.entity] = left - 1
        return BUSY if left > 0 else None

    return fault


def sums(spec: StoreSpec, granularity: timedelta | None = None) -> dict[Key, int]:
    """All aggregates in a store of sums, or counts."""
    with Reader.open(spec, None, granularity and WindowConfig(granularity)) as reader:
        return dict(reader.store.scan())


# A runner.


class Out(NamedTuple):
    """One element of an output, in one of its windows."""

    value: Any
    timestamp: Timestamp
    window: Any


class Ran(NamedTuple):
    """The outputs of a pipeline, and the counters of `MergeRecords`."""

    merged: list[Out]
    dead: list[Out]
    counters: dict[str, int]

    @property
    def results(self) -> list[MergeResult]:
        """Elements of the main output."""
        return [out.value for out in self.merged]

    @property
    def letters(self) -> list[DeadLetter]:
        """Elements of the dead letter output."""
        return [out.value for out in self.dead]

    @property
    def letter(self) -> DeadLetter:
        """The only dead letter."""
        (letter,) = self.letters
        return letter

    def outcomes(self) -> Counter[str]:
        """The number of each outcome, and of dead letters."""
        return Counter([str(result.outcome) for result in self.results] + ["dead_letter"] * len(self.dead))


_collected: dict[str, list[Out]] = {}


class Collect(beam.DoFn):
    """Keeps its elements in a list of this process, and reverts changes by a coder: generated types become the
    library's, and the keys of a result tuples."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def process(self, element: Any, windowed: WindowedValue = beam.DoFn.WindowedValueParam) -> None:
        fields = getattr(element, "_fields", None)
        if fields == MergeResult._fields:
            element = MergeResult(*element)._replace(keys=tuple(element.keys), merged_keys=tuple(element.merged_keys))
        elif fields == DeadLetter._fields:
            element = DeadLetter(*element)
        for each in windowed.windows:
            _collected.setdefault(self._name, []).append(Out(element, windowed.timestamp, each))


def collect(collection: beam.PCollection, label: str) -> str:
    """Attach a `Collect`; returns its name for `collected`."""
    name = uuid.uuid4().hex
    _ = collection | f"Collect {label}" >> beam.ParDo(Collect(name))
    return name


def collected(name: str) -> list[Out]:
    """The elements so far; once."""
    return _collected.pop(name, [])


def make_pipeline(flags: Sequence[str], runner: Any = None) -> beam.Pipeline:
    """A pipeline on the runner that is part of Beam, in this process. Tests of other runners replace this function."""
    return beam.Pipeline(runner=runner or FnApiRunner(), options=PipelineOptions(list(flags)))


def new_pipeline(*flags: str, runner: Any = None) -> beam.Pipeline:
    """What `make_pipeline` makes."""
    return make_pipeline(flags, runner)


def counters_of(result: Any) -> dict[str, int]:
    """Beam's counters of `MergeRecords`, summed over the steps of a pipeline, without zeros."""
    counts: Counter[str] = Counter()
    for counter in result.metrics().query(MetricsFilter().with_namespace("murmur_beam"))["counters"]:
        counts[counter.key.metric.name] += counter.result or 0  # Prism returns None for zero
    return {name: n for name, n in counts.items() if n}


def stamped(element: Any) -> Any:
    """Give a tuple of element and seconds its timestamp; anything else stays."""
    return beam_window.TimestampedValue(*element) if type(element) is tuple else element


def run(elements: Iterable[Any], *flags: str, window_into: Any = None, **arguments: Any) -> Ran:
    """Run a pipeline of one `MergeRecords`; elements may be tuples with their timestamps in seconds."""
    pipeline = new_pipeline(*flags)
    source = pipeline | beam.Create(list(elements)) | beam.Map(stamped)
    if window_into is not None:
        source |= beam.WindowInto(window_into)
    outputs = source | MergeRecords(**arguments)
    merged, dead = collect(outputs.merged, "merged"), collect(outputs.dead_letter, "dead")
    result = pipeline.run()
    result.wait_until_finish()
    return Ran(collected(merged), collected(dead), counters_of(result))


def letter_of(**changes: Any) -> DeadLetter:
    """A dead letter with all possible content."""
    return DeadLetter(
        **{
            "payload": b'\xff\x00"\n',
            "payload_type": "pubsub",
            "attributes": {"\xfc": "\U0001f600", "": ""},
            "message_id": "7",
            "publish_time": "2023-11-14T22:13:20.000000Z",
            "ordering_key": "k",
            "pipeline": "p",
            "stage": "merge",
            "event_id": "1",
            "event_time": "0001-01-01T00:00:00.000000Z",
            "keys": ["a", "\xfc"],
            "failed_keys": ["a"],
            "error_type": "TransientError",
            "error_message": "line 1\nline 2",
            "attempts": 3,
            "failed_at": "2023-11-14T22:13:20.000000Z",
            **changes,
        }
    )


# The DoFn, without a runner.

_INTERVALS = [beam_window.IntervalWindow(60 * i, 60 * i + 180) for i in range(3)]


class Worker:
    """Drives a `MergeDoFn` as a runner does.

    Args:
        windows: how many Beam windows each element is in.
        arguments: of `MergeRecords`.
    """

    def __init__(self, windows: int = 1, **arguments: Any) -> None:
        self.fn = MergeDoFn(resolve(MergeOptions(**arguments)))
        self._windows = _INTERVALS[:windows]
        self.fn.setup()

    def start(self) -> None:
        """Begin a bundle, or begin it again."""
        self.fn.start_bundle()

    def process(self, *elements: Any, at_s: int = NOW_S) -> Iterator[Any]:
        """Pass elements in, and yield their immediate outputs."""
        for element in elements:
            windowed = WindowedValue(element, Timestamp(at_s), list(self._windows))
            for output in self.fn.process(element, windowed):
                tagged = isinstance(output, TaggedOutput)
                value = output.value if tagged else output
                if isinstance(value, WindowedValue):
                    # Beam would multiply the windows by those of the element.
                    assert len(self._windows) == 1
                    value = value.value
                assert tagged == isinstance(value, DeadLetter)
                yield value

    def finish(self) -> Iterator[Any]:
        """End the bundle, and yield its outputs."""
        for output in self.fn.finish_bundle():
            value = output.value if isinstance(output, TaggedOutput) else output
            assert list(value.windows) == self._windows
            yield value.value

    def bundle(self, *elements: Any) -> Iterator[Any]:
        """One successful bundle."""
        self.start()
        yield from self.process(*elements)
        yield from self.finish()

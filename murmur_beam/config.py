"""How records are merged: retries, dedup, and where metrics go."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Annotated, Any, Protocol

from murmur_beam.clock import Clock
from murmur_beam.durations import parse_duration
from murmur_beam.errors import ConfigurationError
from murmur_beam.metrics import Noop, Recorder
from murmur_beam.monoids.base import Monoid
from murmur_beam.option import Option, at_least, check_options, documented, number


@dataclasses.dataclass(frozen=True)
class AtomicDedup:
    """The store drops duplicates in the same write that folds: exactly once per (key, event id)."""


@dataclasses.dataclass(frozen=True)
class NoDedup:
    """Each delivery counts: at least once."""


class Deduper(Protocol):
    """Claims an event id *before* the merge, for stores that have no atomic dedup. Safe for several threads.

    This is weaker than `AtomicDedup`. A crash or a cancellation between claim and merge loses the event, since its
    redelivery is taken for a duplicate. So does a merge that fails for good, unless its dead letter is replayed with
    `NoDedup`, and a claim that was made although ``mark_seen`` raised (its answer was lost).
    """

    def mark_seen(self, event_id: str) -> bool:
        """Remember an id; True the first time, False if it was seen before. An exception counts as a failed try."""


_DEDUP = {"exact": AtomicDedup(), "none": NoDedup()}
"""The ways of dropping duplicates that a flag can name."""


def _dedup(dedup: object) -> None:
    claims = callable(getattr(dedup, "mark_seen", None)) and not isinstance(dedup, type)
    if not (isinstance(dedup, (AtomicDedup, NoDedup)) or claims):
        raise ValueError(
            f"must be None, AtomicDedup(), NoDedup() or an object with mark_seen(event_id), got {dedup!r:.80}"
        )


def _not_negative(wait: object) -> None:
    if not isinstance(wait, timedelta):
        raise ValueError(f"must be a timedelta, got {wait!r:.80}")
    if wait < timedelta(0):
        raise ValueError(f"must not be negative, got {wait}")


@documented
@dataclasses.dataclass(frozen=True)
class Config:
    """Retries, dedup and metrics of a merge.

    The wait after failed try ``n`` of a key is ``uniform(0, min(backoff_max, backoff_base * 2 ** (n - 1)))``. No dedup
    (None) means `AtomicDedup` in `MergeRecords` and the programs, which are exactly once unless `NoDedup` is named, and
    `NoDedup` in `merge_one` and `merge_many`, as in Murmur.

    Args:
        recorder: gets events, errors and latencies.
        clock: time, sleep and randomness.

    Raises:
        ConfigurationError: an argument out of range.
    """

    recorder: Recorder = dataclasses.field(default_factory=Noop)
    max_attempts: Annotated[int, Option("tries for each key", "N", number, at_least(1))] = 3
    backoff_base: Annotated[
        timedelta, Option("longest first wait between tries", "DURATION", parse_duration, _not_negative)
    ] = timedelta(milliseconds=50)
    backoff_max: Annotated[
        timedelta, Option("longest wait between tries", "DURATION", parse_duration, _not_negative)
    ] = timedelta(seconds=5)
    dedup: Annotated[
        AtomicDedup | NoDedup | Deduper | None,
        Option(
            "exact: each event once; none: each delivery counts",
            default="exact",
            parse=_DEDUP.__getitem__,
            check=_dedup,
            choices=(*_DEDUP,),
            more="In Python `AtomicDedup()`, `NoDedup()` (at least once) or a `Deduper`.",
        ),
    ] = None
    clock: Clock = dataclasses.field(default_factory=Clock)

    def __post_init__(self) -> None:
        check_options(self)
        if self.backoff_max < self.backoff_base:
            raise ConfigurationError(
                "backoff_max", f"must not be less than backoff_base ({self.backoff_base}), got {self.backoff_max}"
            )

    def with_recorder(self, recorder: Recorder) -> Config:
        """A copy that reports to ``recorder``."""
        return dataclasses.replace(self, recorder=recorder)

    def with_max_attempts(self, max_attempts: int) -> Config:
        """A copy with this number of tries for each key."""
        return dataclasses.replace(self, max_attempts=max_attempts)

    def with_backoff(self, base: timedelta, cap: timedelta) -> Config:
        """A copy with these waits."""
        return dataclasses.replace(self, backoff_base=base, backoff_max=cap)

    def with_dedup(self, dedup: AtomicDedup | NoDedup | Deduper | None) -> Config:
        """A copy with this way of dropping duplicates."""
        return dataclasses.replace(self, dedup=dedup)


def defaults() -> Config:
    """Three tries, 50 ms to 5 s of backoff, no metrics, the default dedup."""
    return Config()


def needs_event_id(cfg: Config, monoid: Monoid[Any]) -> bool:
    """Whether records need an event id: not with dedup off, nor if folding an event twice changes nothing."""
    if isinstance(cfg.dedup, AtomicDedup):
        return not monoid.idempotent
    return deduper_of(cfg) is not None


def deduper_of(cfg: Config) -> Deduper | None:
    """The `Deduper` of a configuration; None if it has another way to drop duplicates."""
    return None if cfg.dedup is None or isinstance(cfg.dedup, (AtomicDedup, NoDedup)) else cfg.dedup

"""The per-record core: folds a record's delta into each of its keys once, and retries what may yet succeed.

The module imports neither Beam nor a Google client, so a plain subscriber, a web handler or a batch job can use it as
the Beam transform does. All entry points lead to `merge_records`, so one record and a bundle obey the same rules.
"""

from __future__ import annotations

import dataclasses
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, NamedTuple, TypeVar

from murmur_beam import retry
from murmur_beam.config import AtomicDedup, Config, Deduper, NoDedup, deduper_of, defaults, needs_event_id
from murmur_beam.errors import (
    InvalidRecord,
    MergeCancelled,
    PermanentError,
    RetriesExhausted,
    SchemaMismatch,
    StoreUnavailable,
)
from murmur_beam.metrics import Recorder, SizeRecorder, count_events
from murmur_beam.model import Key, Outcome, Record, Update, check_record, to_us
from murmur_beam.monoids.base import Monoid
from murmur_beam.state.adapted import as_store
from murmur_beam.state.base import Result, Store, StoreLike, UpdateResults
from murmur_beam.windows import WindowConfig

__all__ = [
    "AtomicDedup",
    "Config",
    "Deduper",
    "MergeCancelled",
    "NoDedup",
    "RecordResult",
    "RetriesExhausted",
    "defaults",
    "make_record",
    "merge_many",
    "merge_one",
    "merge_records",
    "needs_event_id",
]

T = TypeVar("T")
V = TypeVar("V")


class RecordResult(NamedTuple):
    """The result of one record.

    Attributes:
        outcome: of the whole record: recorded if any key was, else merged if any key was; None if a key failed.
        skipped: keys that were duplicates, if the outcomes of the record's keys differ.
        failed: keys that could not be merged.
        error: the cause, or None; the store's fault before the record's, a permanent error before others.
        attempts: tries made for the failed keys; 0 if none failed.
    """

    outcome: Outcome | None
    skipped: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    error: Exception | None = None
    attempts: int = 0

    def merged(self, entities: tuple[str, ...]) -> tuple[str, ...]:
        """The record's keys that were folded or recorded now."""
        if self.outcome is Outcome.DUPLICATE or self.outcome is Outcome.EXPIRED:
            return ()
        if not self.skipped and not self.failed:
            return entities
        return tuple(e for e in entities if e not in self.skipped and e not in self.failed)


# Nearly every record has one of these four results. They are shared, since a bundle holds thousands of results.
MERGED = RecordResult(Outcome.MERGED)
DUPLICATE = RecordResult(Outcome.DUPLICATE)
RECORDED = RecordResult(Outcome.RECORDED)
_EXPIRED = RecordResult(Outcome.EXPIRED)


def merge_one(
    cfg: Config,
    pipeline_name: str,
    event_id: str | None,
    event_time: datetime,
    value: T,
    key_fn: Callable[[T], str],
    value_fn: Callable[[T], Any],
    store: StoreLike[V],
    cache: StoreLike[V] | None = None,
    window: WindowConfig | None = None,
    *,
    cancel: threading.Event | None = None,
) -> Outcome:
    """Merge what one record adds to one key; like `merge_many` with ``[key_fn(value)]`` and ``value_fn(value)``."""
    return merge_many(
        cfg,
        pipeline_name,
        event_id,
        event_time,
        [key_fn(value)],
        value_fn(value),
        store,
        cache,
        window,
        cancel=cancel,
    )


def merge_many(
    cfg: Config,
    pipeline_name: str,
    event_id: str | None,
    event_time: datetime,
    keys: Iterable[str],
    delta: Any,
    store: StoreLike[V],
    cache: StoreLike[V] | None = None,
    window: WindowConfig | None = None,
    *,
    cancel: threading.Event | None = None,
) -> Outcome:
    """Merge one record's delta into each of its keys.

    Args:
        cfg: retries, dedup and recorder.
        pipeline_name: name of the metrics, and in errors.
        event_id: what makes the record the same when it is delivered again; needed with dedup.
        event_time: when it happened, with a time zone.
        keys: keys to merge into; a repeated key counts once; without keys nothing is merged.
        delta: what ``store.monoid.lift`` takes: an int for a sum.
        store: the source of truth.
        cache: a copy to keep up to date; its failures are recorded and change nothing.
        window: time buckets; None for one aggregate over all time.
        cancel: set it to end a wait between tries.

    Returns:
        The outcome; a driver acknowledges the record after any of them.

    Raises:
        RetriesExhausted: all tries of at least one key failed. The other keys keep their writes. Counted as
            ``NAME:dead_letter``, since the caller has to keep the record.
        PermanentError: a key, the delta, the event's id or time, or the store is unusable; ``keys`` of the error are
            those that failed. Counted as ``NAME:dead_letter``, unless it is the store's fault (`StoreUnavailable`,
            `SchemaMismatch`).
        MergeCancelled: ``cancel`` was set during a wait.
    """
    entities = [keys] if isinstance(keys, str) else list(keys)
    if not entities:
        return Outcome.MERGED
    need_id = needs_event_id(cfg, store.monoid)
    try:
        several = keys if isinstance(keys, str) else entities  # one string is refused
        record = make_record(store.monoid, event_id, to_us(event_time), several, delta, need_id=need_id)
    except PermanentError as err:
        cfg.recorder.record_error(pipeline_name, err)
        cfg.recorder.record_event(f"{pipeline_name}:dead_letter")
        err.keys = tuple(dict.fromkeys(entity for entity in entities if isinstance(entity, str)))
        raise
    (result,) = merge_records(cfg, pipeline_name, [record], store, cache, window, cancel=cancel)
    if result.outcome is not None:
        return result.outcome
    # A store that cannot be used as configured is not the record's fault, and makes no dead letter.
    if not isinstance(result.error, (StoreUnavailable, SchemaMismatch)):
        cfg.recorder.record_event(f"{pipeline_name}:dead_letter")
    if isinstance(result.error, PermanentError):
        result.error.keys = result.failed
        raise result.error
    raise RetriesExhausted(pipeline_name, record[0], result.failed, result.attempts) from result.error


def make_record(
    monoid: Monoid[Any],
    event_id: object,
    event_time_us: int,
    keys: Iterable[object],
    value: Any,
    *,
    need_id: bool,
    ns: int = 0,
) -> Record:
    """Check what a user's functions returned, and lift the value to a delta.

    Args:
        monoid: lifts the value.
        event_id, event_time_us, keys, value: parts of the record; the time in microseconds since the Unix epoch.
        need_id: whether an event id is required.
        ns: nanoseconds of the event time beyond its microsecond.

    Raises:
        InvalidRecord: a required id is missing, or id, keys or value are unusable.
    """
    if event_id is None and need_id:
        raise InvalidRecord("event_id", "is missing, but without it a redelivery looks like a new event")
    delta = monoid.lift_ns(value, event_time_us, ns) if ns else monoid.lift(value, event_time_us)
    return check_record(event_id, event_time_us, keys, delta)


def merge_records(
    cfg: Config,
    pipeline_name: str,
    records: Sequence[Record],
    store: StoreLike[V],
    cache: StoreLike[V] | None = None,
    window: WindowConfig | None = None,
    *,
    cancel: threading.Event | None = None,
) -> list[RecordResult]:
    """Merge many records: each touched row is written once, and only what failed is tried again.

    Args:
        records: from `make_record`.
        cfg, pipeline_name, store, cache, window, cancel: as in `merge_many`.

    Returns:
        One result for each record, in order. Failures are results, not exceptions.

    Raises:
        MergeCancelled: ``cancel`` was set during a wait. What was merged before stays merged.
    """
    store = as_store(store)
    window = _kept_as_the_table(window, store)
    settled = _settle_early(cfg, pipeline_name, records, window)
    if (deduper := deduper_of(cfg)) is not None:
        _claim_first(cfg, pipeline_name, deduper, records, settled, cancel)
    if settled:
        records = [record for i, record in enumerate(records) if i not in settled]
    updates = _updates(cfg, records, window, store)

    def write(pending: Sequence[Update]) -> list[Result]:
        with _timed(cfg, pipeline_name, "store_merge"):
            written = store.merge_updates(pending)
        if isinstance(written, UpdateResults):
            _report(cfg.recorder, pipeline_name, written)
        return written

    def settle(tried: Sequence[Update], outcomes: Sequence[Result]) -> None:
        # After each try, not at the end: what was merged counts even if a later wait is cancelled.
        merged, duplicate, recorded = _count(outcomes)
        count_events(cfg.recorder, pipeline_name, merged + recorded)
        count_events(cfg.recorder, f"{pipeline_name}:dedup_skip", duplicate)
        if cache is not None:
            _update_cache(cfg, pipeline_name, cache, tried, outcomes)

    written, tries = _try_again(cfg, pipeline_name, updates, write, cancel, settle)
    merged = _assemble(records, written, tries)
    if not settled:
        return merged
    others = iter(merged)
    return [settled[i] if i in settled else next(others) for i in range(len(settled) + len(merged))]


def _kept_as_the_table(window: WindowConfig | None, store: Store[Any]) -> WindowConfig | None:
    """The window with the table's retention, if it has none itself and the table records one."""
    if window is None:
        return None
    retention = store.settle_retention(window.retention)
    return window if retention == window.retention else dataclasses.replace(window, retention=retention)


def _settle_early(
    cfg: Config, pipeline_name: str, records: Sequence[Record], window: WindowConfig | None
) -> dict[int, RecordResult]:
    """Results of the records that touch no row, by position: those without keys, and expired ones."""
    settled = {i: MERGED for i, (_, _, entities, _) in enumerate(records) if not entities}
    cutoff_us = window.cutoff_us(_now_us(cfg)) if window else None
    if cutoff_us is not None:
        expired = [i for i, (_, time_us, entities, _) in enumerate(records) if entities and time_us < cutoff_us]
        count_events(cfg.recorder, f"{pipeline_name}:expired", len(expired))
        settled.update(dict.fromkeys(expired, _EXPIRED))
    return settled


def _claim_first(
    cfg: Config,
    pipeline_name: str,
    deduper: Deduper,
    records: Sequence[Record],
    settled: dict[int, RecordResult],
    cancel: threading.Event | None,
) -> None:
    """Settle records whose id was claimed before, or cannot be claimed."""

    def claim(pending: Sequence[Record]) -> list[Result]:
        claimed: list[Result] = []
        for event_id, _, _, _ in pending:
            try:
                fresh = deduper.mark_seen(event_id or "")
            except Exception as err:
                claimed.append(err)
            else:
                claimed.append(Outcome.MERGED if fresh else Outcome.DUPLICATE)
        return claimed

    open_positions = [i for i in range(len(records)) if i not in settled]
    claims, tries = _try_again(cfg, pipeline_name, [records[i] for i in open_positions], claim, cancel)
    for i, claimed, tried in zip(open_positions, claims, tries, strict=True):
        _, _, entities, _ = records[i]
        if isinstance(claimed, Exception):
            settled[i] = RecordResult(None, (), entities, claimed, tried)
        elif claimed is Outcome.DUPLICATE:
            count_events(cfg.recorder, f"{pipeline_name}:dedup_skip", len(entities))
            settled[i] = DUPLICATE


def _updates(cfg: Config, records: Sequence[Record], window: WindowConfig | None, store: Store[Any]) -> list[Update]:
    """One update for each key of each record, in order."""
    atomic = isinstance(cfg.dedup, AtomicDedup)
    # A retried append is recognized by its event id, so all tries of a flush use the same ids.
    anonymous = not atomic and not store.monoid.idempotent and store.appends
    flush_id = uuid.uuid4().hex if anonymous else ""
    now_us = _now_us(cfg)
    granularity_us = window.granularity_us if window else 0
    # One key object for each row, since most records share few rows.
    buckets: dict[int, tuple[timedelta | None, dict[str, Key]]] = {}
    updates: list[Update] = []
    new = tuple.__new__  # half the time of calling the class
    for event_id, event_time_us, entities, delta in records:
        bucket = event_time_us // granularity_us if granularity_us else 0
        if bucket not in buckets:
            expires_us = window.expires_us(bucket) if window else None
            buckets[bucket] = None if expires_us is None else _as_timedelta(expires_us - now_us), {}
        ttl, keys = buckets[bucket]
        marker = event_id if atomic else None
        for entity in entities:
            key = keys.get(entity)
            if key is None:
                key = keys[entity] = new(Key, (entity, bucket))
            if anonymous:
                marker = f"{flush_id}/{len(updates)}"
            updates.append(new(Update, (key, delta, marker, ttl)))
    return updates


def _try_again(
    cfg: Config,
    pipeline_name: str,
    items: Sequence[T],
    call: Callable[[Sequence[T]], list[Result]],
    cancel: threading.Event | None,
    settle: Callable[[Sequence[T], Sequence[Result]], None] = lambda items, results: None,
) -> tuple[list[Result], list[int]]:
    """Call with all items, then again with those that failed and may yet succeed.

    Args:
        call: returns the result of each item.
        settle: is given the items and results of every try.

    Returns:
        The last result of each item, and its number of tries.
    """
    results: list[Result] = []
    tries = [1] * len(items)
    if not items:
        return results, tries
    pending: Sequence[int] = range(len(items))
    for attempt in retry.attempts(cfg.max_attempts, cfg.backoff_base, cfg.backoff_max, cfg.clock, cancel):
        called = items if attempt == 1 else [items[i] for i in pending]
        try:
            tried = call(called)
        except Exception as err:
            tried = [err] * len(pending)
        if attempt == 1:
            results = tried
        else:
            for i, result in zip(pending, tried, strict=True):
                cfg.recorder.record_event(f"{pipeline_name}:retry")
                results[i] = result
                tries[i] = attempt
        again = []
        if sum(_count(tried)) != len(called):
            for i, result in zip(pending, tried, strict=True):
                if isinstance(result, Exception):
                    cfg.recorder.record_error(pipeline_name, result)
                    if not isinstance(result, PermanentError):
                        again.append(i)
        settle(called, tried)
        pending = again
        if not pending:
            break
    return results, tries


def _update_cache(
    cfg: Config, pipeline_name: str, cache: StoreLike[V], updates: Sequence[Update], written: Sequence[Result]
) -> None:
    merged = [
        update._replace(event_id=None)
        for update, result in zip(updates, written, strict=True)
        if result is Outcome.MERGED
    ]
    if not merged:
        return
    try:
        with _timed(cfg, pipeline_name, "cache_merge"):
            failures: list[Any] = [r for r in cache.merge_updates(merged) if isinstance(r, Exception)]
    except Exception as err:
        failures = [err]
    for failure in failures:
        cfg.recorder.record_error(f"{pipeline_name}:cache", failure)


def _assemble(records: Sequence[Record], written: Sequence[Result], tries: Sequence[int]) -> list[RecordResult]:
    """The results of the records, from those of their updates."""
    if written and (alike := _if_alike(written)) is not None:
        return [alike] * len(records)
    assembled = []
    start = 0
    for _, _, entities, _ in records:
        stop = start + len(entities)
        assembled.append(_result_of(entities, written[start:stop], tries[start:stop]))
        start = stop
    return assembled


def _result_of(entities: tuple[str, ...], written: Sequence[Result], tries: Sequence[int]) -> RecordResult:
    if (alike := _if_alike(written)) is not None:
        return alike
    skipped = tuple(e for e, result in zip(entities, written, strict=True) if result is Outcome.DUPLICATE)
    failed = {e: result for e, result in zip(entities, written, strict=True) if isinstance(result, Exception)}
    if not failed:
        # Both merged and recorded: between two tries the table was switched to appending.
        return RecordResult(Outcome.RECORDED if Outcome.RECORDED in written else Outcome.MERGED, skipped)
    # A fault of the store comes before a fault of the record, and that before a failure that a retry may cure.
    error = min(failed.values(), key=_precedence)
    attempts = max(t for t, result in zip(tries, written, strict=True) if isinstance(result, Exception))
    return RecordResult(None, skipped, tuple(failed), error, attempts)


def _if_alike(written: Sequence[Result]) -> RecordResult | None:
    """The result that all updates share; None if outcomes differ or an update failed. ``written`` is not empty."""
    for result in (MERGED, DUPLICATE, RECORDED):
        if written[0] is result.outcome:
            return result if written.count(result.outcome) == len(written) else None
    return None


def _count(results: Sequence[Result]) -> tuple[int, int, int]:
    """Numbers of merged, duplicate and recorded results. Most calls have one kind only, and are counted once."""
    merged = results.count(Outcome.MERGED)
    duplicate = results.count(Outcome.DUPLICATE) if merged < len(results) else 0
    recorded = results.count(Outcome.RECORDED) if merged + duplicate < len(results) else 0
    return merged, duplicate, recorded


def _precedence(error: Exception) -> int:
    if isinstance(error, (StoreUnavailable, SchemaMismatch)):
        return 0
    return 1 if isinstance(error, PermanentError) else 2


def _as_timedelta(us: int) -> timedelta:
    """A time, at most `timedelta.max`, which is a valid retention."""
    return timedelta(microseconds=us) if us <= _LONGEST_US else timedelta.max


_LONGEST_US = timedelta.max // timedelta(microseconds=1)


def _now_us(cfg: Config) -> int:
    return int(cfg.clock.now() * 1_000_000)


def _report(recorder: Recorder, pipeline_name: str, flushed: UpdateResults) -> None:
    for what, n in flushed.counts.items():
        count_events(recorder, f"{pipeline_name}:{what}", n)
    if flushed.sizes and isinstance(recorder, SizeRecorder):  # the check takes as long as three events
        for what, n_bytes in flushed.sizes.items():
            recorder.record_size(pipeline_name, what, n_bytes)


@contextmanager
def _timed(cfg: Config, pipeline_name: str, op: str) -> Iterator[None]:
    started = cfg.clock.monotonic()
    try:
        yield
    finally:
        cfg.recorder.record_latency(pipeline_name, op, cfg.clock.monotonic() - started)

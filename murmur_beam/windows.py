"""Tumbling windows over event time: the bucket of an event, and the buckets of a span.

Bucket ``b`` covers ``[b * granularity, (b + 1) * granularity)`` since 1970-01-01T00:00:00Z; earlier times have negative
buckets.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from murmur_beam.durations import parse_duration as parse_duration
from murmur_beam.model import from_us, to_us

_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True)
class WindowConfig:
    """Buckets of one length, with a retention.

    Args:
        granularity: length of a bucket, positive.
        retention: how long after its event time an event still counts, positive; None keeps every bucket forever.
            An older event is skipped with `Outcome.EXPIRED`.

    Raises:
        ValueError: a duration is not positive.
    """

    granularity: timedelta
    retention: timedelta | None = None

    def __post_init__(self) -> None:
        if self.granularity <= timedelta(0):
            raise ValueError(f"granularity must be positive, got {self.granularity}")
        if self.retention is not None and self.retention <= timedelta(0):
            raise ValueError(f"retention must be positive, got {self.retention}; None keeps buckets forever")

    @property
    def granularity_us(self) -> int:
        """Length of a bucket in microseconds."""
        return self.granularity // _MICROSECOND

    def bucket_id(self, t: datetime) -> int:
        """Bucket that contains ``t``, a time with a zone: floor(unix time / granularity)."""
        return to_us(t) // self.granularity_us

    def bucket_start(self, bucket: int) -> datetime:
        """First instant of a bucket, UTC.

        Raises:
            OverflowError: the bucket starts outside the years 1 to 9999.
        """
        return from_us(bucket * self.granularity_us)

    def last_n(self, now: datetime, d: timedelta) -> list[int]:
        """The ``ceil(d / granularity)`` buckets that end with now's, oldest first.

        Raises:
            ValueError: ``d`` is not positive.
        """
        if d <= timedelta(0):
            raise ValueError(f"the span to look back must be positive, got {d}")
        last = self.bucket_id(now)
        return list(range(last + 1 + (-d // self.granularity), last + 1))

    def bucket_range(self, start: datetime, end: datetime) -> list[int]:
        """Buckets from start's to end's, both included; empty if ``end`` is before ``start``."""
        return list(range(self.bucket_id(start), self.bucket_id(end) + 1))

    def expires_us(self, bucket: int) -> int | None:
        """Time when the bucket stops taking events, in microseconds since the epoch; None: never."""
        if self.retention is None:
            return None
        return (bucket + 1) * self.granularity_us + self.retention // _MICROSECOND

    def cutoff_us(self, now_us: int) -> int | None:
        """Time before which events are expired, in microseconds since the epoch; None: events never expire."""
        return None if self.retention is None else now_us - self.retention // _MICROSECOND


def daily(retention: timedelta | None = None) -> WindowConfig:
    """Buckets of one UTC day."""
    return WindowConfig(timedelta(days=1), retention)


def hourly(retention: timedelta | None = None) -> WindowConfig:
    """Buckets of one hour."""
    return WindowConfig(timedelta(hours=1), retention)


def minute(retention: timedelta | None = None) -> WindowConfig:
    """Buckets of one minute."""
    return WindowConfig(timedelta(minutes=1), retention)


def parse_window(text: str, retention: timedelta | None = None) -> WindowConfig:
    """Read ``daily``, ``hourly``, ``minute`` or a duration.

    Raises:
        ValueError: the text is something else.
    """
    named = {"daily": daily, "hourly": hourly, "minute": minute}
    if text in named:
        return named[text](retention)
    try:
        granularity = parse_duration(text)
    except ValueError as err:
        raise ValueError(f"{err}; or write daily, hourly or minute") from None
    return WindowConfig(granularity, retention)

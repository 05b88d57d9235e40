"""Values with event times and their total order, shared by `First` and `Last`."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from murmur_beam.errors import InvalidRecord
from murmur_beam.model import plain
from murmur_beam.monoids.base import canonical_json
from murmur_beam.monoids.extremum import Extremum


class Timed(NamedTuple):
    """The value of one record, with its event time.

    Attributes:
        event_time_us: microseconds since the epoch.
        value: a JSON value: None, bool, int, finite float, str, or a list or dict of these.
        ns: nanoseconds beyond the microsecond, if the event time has them.
    """

    event_time_us: int
    value: Any
    ns: int = 0


class TimedExtremum(Extremum[Timed]):
    """An extremum by event time; at equal times, by the canonical JSON text of the value.

    The text decides, not the value, because ``1 == 1.0 == True`` although these are different results, and because a
    string and a number have no order.
    """

    needs_event_time = True

    def lift(self, value: Any, event_time_us: int) -> Timed:
        """The value after a round trip through JSON (a tuple becomes a list, a dict's keys become strings), with its
        time.

        Raises:
            InvalidRecord: JSON cannot represent the value: NaN, infinity, a set, a lone surrogate ...
        """
        return self.lift_ns(value, event_time_us, 0)

    def lift_ns(self, value: Any, event_time_us: int, ns: int) -> Timed:
        """As `lift`, but keeps the order of events within one microsecond.

        Raises:
            InvalidRecord: as in `lift`.
        """
        try:
            return Timed(event_time_us, json.loads(canonical_json(plain(value)).encode("utf-8")), ns)
        except (TypeError, ValueError, RecursionError) as err:
            # Without the value: its repr fails as well if it is nested too deeply, or has an int too long for JSON.
            raise InvalidRecord("value", f"{type(value).__name__} has no JSON form: {err}") from None

    def encode(self, v: Timed | None) -> bytes:
        """A JSON list of time and value, and of the nanoseconds if they are not zero."""
        return canonical_json(v if v is None or v.ns else v[:2]).encode("utf-8")

    def decode(self, data: bytes) -> Timed | None:
        """Inverse of `encode`."""
        decoded = json.loads(data)
        return None if decoded is None else Timed(*decoded)


def precedes(a: Timed, b: Timed) -> bool:
    """Return whether ``a`` comes before ``b``, or has the same bytes."""
    times = (a.event_time_us, a.ns), (b.event_time_us, b.ns)
    if times[0] != times[1]:
        return times[0] < times[1]
    return canonical_json(a.value) <= canonical_json(b.value)

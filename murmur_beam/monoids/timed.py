"""A value with its event time, and the total order of such values: what `First` and `Last` share."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from murmur_beam.errors import InvalidRecord
from murmur_beam.model import plain
from murmur_beam.monoids.base import canonical_json
from murmur_beam.monoids.extremum import Extremum


class Timed(NamedTuple):
    """What one record carried, and when it happened.

    Attributes:
        event_time_us: microseconds since the epoch.
        value: what JSON can hold: None, bool, int, finite float, str, and lists and dicts of these.
        ns: nanoseconds beyond that microsecond, where the event's time tells them.
    """

    event_time_us: int
    value: Any
    ns: int = 0


class TimedExtremum(Extremum[Timed]):
    """An extremum by event time; at equal times, by the canonical JSON text of the value.

    The text and not the value, because ``1 == 1.0 == True`` though they are different answers, and because there is
    no order between a string and a number.
    """

    needs_event_time = True

    def lift(self, value: Any, event_time_us: int) -> Timed:
        """The value as JSON gives it back (a tuple becomes a list, a dict's keys become strings), with its time.

        Raises:
            InvalidRecord: JSON cannot hold the value: NaN, infinity, a set, a lone surrogate ...
        """
        return self.lift_ns(value, event_time_us, 0)

    def lift_ns(self, value: Any, event_time_us: int, ns: int) -> Timed:
        """As `lift`, of events within one microsecond in their order.

        Raises:
            InvalidRecord: as `lift`.
        """
        try:
            return Timed(event_time_us, json.loads(canonical_json(plain(value)).encode("utf-8")), ns)
        except (TypeError, ValueError, RecursionError) as err:
            # Without the value: the repr of one nested too deeply, or of an int too long for JSON, fails as well.
            raise InvalidRecord("value", f"{type(value).__name__} has no JSON form: {err}") from None

    def encode(self, v: Timed | None) -> bytes:
        """A JSON list of time and value, and of the nanoseconds where there are any."""
        return canonical_json(v if v is None or v.ns else v[:2]).encode("utf-8")

    def decode(self, data: bytes) -> Timed | None:
        """Inverse of `encode`."""
        decoded = json.loads(data)
        return None if decoded is None else Timed(*decoded)


def precedes(a: Timed, b: Timed) -> bool:
    """Tell whether ``a`` comes before ``b``, or has the same bytes."""
    times = (a.event_time_us, a.ns), (b.event_time_us, b.ns)
    if times[0] != times[1]:
        return times[0] < times[1]
    return canonical_json(a.value) <= canonical_json(b.value)

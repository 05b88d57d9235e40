"""A value with its event time, and the total order of such values: what `First` and `Last` share."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from murmur_beam.errors import InvalidRecord
from murmur_beam.monoids.base import canonical_json
from murmur_beam.monoids.extremum import Extremum


class Timed(NamedTuple):
    """What one record carried, and when it happened.

    Attributes:
        event_time_us: microseconds since the epoch.
        value: what JSON can hold: None, bool, int, finite float, str, and lists and dicts of these.
    """

    event_time_us: int
    value: Any


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
        try:
            return Timed(event_time_us, json.loads(canonical_json(value).encode("utf-8")))
        except (TypeError, ValueError, RecursionError) as err:
            # Without the value: the repr of one nested too deeply, or of an int too long for JSON, fails as well.
            raise InvalidRecord("value", f"{type(value).__name__} has no JSON form: {err}") from None

    def decode(self, data: bytes) -> Timed | None:
        """Inverse of `encode`."""
        decoded = json.loads(data)
        return None if decoded is None else Timed(*decoded)


def precedes(a: Timed, b: Timed) -> bool:
    """Does ``a`` come before ``b``, or has the same bytes?"""
    if a.event_time_us != b.event_time_us:
        return a.event_time_us < b.event_time_us
    return canonical_json(a.value) <= canonical_json(b.value)

"""Numbers that arrive one by one, from sources without an end, for streaming pipelines on several engines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.coders import VarIntCoder
from apache_beam.io.flink.flink_streaming_impulse_source import FlinkStreamingImpulseSource
from apache_beam.transforms.periodicsequence import PeriodicImpulse
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec

FLINK_SUBTASKS = 2
"""The parallelism of pipelines on Flink: each subtask of the source sends at the interval."""


def on_flink(pipeline: beam.Pipeline, numbers: range, interval_s: float, sends: int = 0) -> beam.PCollection[int]:
    """The numbers, from Flink's own source, which sends empty messages; state gives them their numbers.

    The numbers go on after the last checkpoint when Flink restarts; the source itself starts over.

    Args:
        pipeline: to run on Flink.
        numbers: in order.
        interval_s: between two of them, at least.
        sends: number of messages that the source sends, if it is to end; 0: it never ends.
    """
    source = FlinkStreamingImpulseSource()
    source.config = {"interval_ms": round(interval_s * 1000 * FLINK_SUBTASKS), "message_count": sends}
    return (
        pipeline
        | "Ticks" >> source
        | "OneKey" >> beam.Map(_keyed).with_output_types(tuple[bytes, int])
        | "Number" >> beam.ParDo(_Number(numbers))
        | "Spread" >> beam.Reshuffle()
    )


def by_clock(pipeline: beam.Pipeline, numbers: range, interval_s: float, start_s: float) -> beam.PCollection[int]:
    """The numbers, the first at ``start_s``; overdue ones at once.

    Args:
        pipeline: to run on an engine other than Flink, whose job server of Beam 2.62 often does not start this source.
        numbers: in order.
        interval_s: between two of them.
        start_s: in seconds since the epoch.
    """
    impulses = PeriodicImpulse(start_s, start_s + (len(numbers) - 0.5) * interval_s, interval_s)
    return pipeline | "Ticks" >> impulses | "Number" >> beam.Map(_number_at, numbers, start_s, interval_s)


def _keyed(message: bytes) -> tuple[bytes, int]:
    return b"", 0


def _number_at(at: Any, numbers: range, start_s: float, interval_s: float) -> int:
    return numbers[round((float(at) - start_s) / interval_s)]


class _Number(beam.DoFn):
    """Numbers its elements, and drops those beyond the last number."""

    NEXT = beam.DoFn.StateParam(ReadModifyWriteStateSpec("next", VarIntCoder()))

    def __init__(self, numbers: range) -> None:
        super().__init__()
        self._numbers = numbers

    def process(self, element: tuple[bytes, int], state: Any = NEXT) -> Iterator[int]:
        """Emit the next number."""
        position = state.read() or 0
        if position < len(self._numbers):
            state.write(position + 1)
            yield self._numbers[position]

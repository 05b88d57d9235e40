"""The watch of a process that measures one pipeline, and the steps that start and stop it."""

from __future__ import annotations

from murmur_beam.quiet_beam import beam  # isort: split

from collections.abc import Iterator
from typing import Any

from apache_beam.utils.windowed_value import WindowedValue

from benchmarks.harness import Watch
from benchmarks.workloads import events, pages
from murmur_beam.gc_tuning import freeze_startup_objects

watch = Watch()


class Done(beam.DoFn):
    """Stops the watch when a bundle ends, after all earlier steps have written. It gets no elements, so it costs no
    time."""

    def process(self, element: object) -> None:
        """Ignore the element: a dead letter or a result of a write would have no use here."""

    def finish_bundle(self) -> None:
        """Stop the watch; a later bundle stops it again."""
        watch.stop()


class Emit(beam.DoFn):
    """Emits the events of a workload; starts the watch."""

    def setup(self) -> None:
        """Tune the garbage collector as a pipeline's process does."""
        freeze_startup_objects()

    def process(self, workload: tuple[str, int, str]) -> Iterator[dict[str, object]]:
        pages(*workload[:2])
        watch.start()
        yield from events(*workload)


class Copy(beam.DoFn):
    """Emits each element unchanged; stops the watch."""

    def process(self, element: Any) -> Iterator[Any]:
        yield element

    def finish_bundle(self) -> None:
        """Stop the watch, as `Done` does, which every element would have to reach."""
        watch.stop()


class Hold(beam.DoFn):
    """Emits each element unchanged at the end of its bundle, as a buffering step must; stops the watch."""

    def start_bundle(self) -> None:
        """Begin with no elements."""
        self._held: list[WindowedValue] = []

    def process(self, element: Any, windowed: WindowedValue = beam.DoFn.WindowedValueParam) -> None:
        """Keep the element with its window."""
        self._held.append(windowed)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        """Emit all elements."""
        yield from self._held
        watch.stop()

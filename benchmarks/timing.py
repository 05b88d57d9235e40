"""The watch of a process that measures one pipeline, and the steps that start and stop it."""

from __future__ import annotations

from pipelines.quiet_beam import beam  # isort: split

from collections.abc import Iterator
from typing import Any

from apache_beam.utils.windowed_value import WindowedValue

from benchmarks.harness import Watch
from benchmarks.workloads import events, pages
from murmur_beam.dedicated import put_aside

watch = Watch()


class Done(beam.DoFn):
    """Stops the watch when a bundle ends, and all before it has written; it is given nothing that costs time."""

    def process(self, element: object) -> None:
        """There is no dead letter, nor a result of a write."""

    def finish_bundle(self) -> None:
        """Stop, until a later bundle does."""
        watch.stop()


class Emit(beam.DoFn):
    """The events of a workload; starts the watch."""

    def setup(self) -> None:
        """As a pipeline's own process does."""
        put_aside()

    def process(self, workload: tuple[str, int, str]) -> Iterator[dict[str, object]]:
        pages(*workload[:2])
        watch.start()
        yield from events(*workload)


class Copy(beam.DoFn):
    """Each element as it came; stops the watch."""

    def process(self, element: Any) -> Iterator[Any]:
        yield element

    def finish_bundle(self) -> None:
        """As `Done`, which would have to be given every element."""
        watch.stop()


class Hold(beam.DoFn):
    """Each element as it came, but at the end of its bundle, as whoever buffers must; stops the watch."""

    def start_bundle(self) -> None:
        """Hold nothing yet."""
        self._held: list[WindowedValue] = []

    def process(self, element: Any, windowed: WindowedValue = beam.DoFn.WindowedValueParam) -> None:
        """Keep it, with its window."""
        self._held.append(windowed)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        """Give all out."""
        yield from self._held
        watch.stop()

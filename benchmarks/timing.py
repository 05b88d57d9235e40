"""The watch of a process that measures one pipeline, and the step that stops it."""

from __future__ import annotations

from pipelines.quiet_beam import beam  # isort: split

from benchmarks.harness import Watch

watch = Watch()


class Done(beam.DoFn):
    """Stops the watch when a bundle ends, and all before it has written; it is given nothing that costs time."""

    def process(self, element: object) -> None:
        """There is no dead letter, nor a result of a write."""

    def finish_bundle(self) -> None:
        """Stop, until a later bundle does."""
        watch.stop()

"""What the pipelines share: options, errors as one line, progress, the summary and the file of dead letters."""

from __future__ import annotations

import argparse
import functools
import io
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems
from apache_beam.metrics import MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from murmur_beam.errors import ConfigurationError, MurmurError
from murmur_beam.model import DeadLetter
from murmur_beam.transforms import METRICS_NAMESPACE

IN_PROCESS_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
"""Beam's own runner inside this process: nothing to download, unlike the ``DirectRunner`` of newer versions."""

DEAD_LETTERS_HELP = "file for what cannot be merged; must not exist yet (%(default)s)"

Main = Callable[[Sequence[str] | None], int]

_IN_PLACE_EVERY_S = 0.2
_LINE_EVERY_S = 5.0


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all of ours are, instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and end with exit code 2."""
        self.exit(2, f"{self.prog.rpartition('.')[2]}: error: {message} (see --help)\n")


def one_line_errors(name: str) -> Callable[[Main], Main]:
    """Turn a user's mistake into one line on stderr, after the pipeline's name, and exit code 2.

    An interruption is one line as well. A fault of ours keeps its traceback.
    """

    def decorate(main: Main) -> Main:
        @functools.wraps(main)
        def wrapped(argv: Sequence[str] | None = None) -> int:
            if isinstance(sys.stdout, io.TextIOWrapper):
                # A terminal that cannot show a bar or a letter shows a question mark.
                sys.stdout.reconfigure(errors="replace")
            try:
                code = main(argv)
                sys.stdout.flush()
            except BrokenPipeError:
                # Whoever read our output has seen enough, as head does. Python must not try to flush once more.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return 0
            except (MurmurError, OSError) as err:
                print(f"{name}: error: {err}", file=sys.stderr)
                return 2
            except (KeyboardInterrupt, RuntimeError) as err:
                # Beam wraps the exceptions of its steps.
                if "KeyboardInterrupt" not in f"{type(err).__name__}: {err}":
                    raise
                print(f"\n{name}: interrupted; run it again to go on", file=sys.stderr)
                return 130
            return code

        return wrapped

    return decorate


def beam_options(arguments: Sequence[str]) -> PipelineOptions:
    """Beam's options, from what a pipeline's own parser left over; in this process unless a runner is named.

    Raises:
        ConfigurationError: a flag that nobody knows. Other runners bring flags of their own, and check them.
    """
    options = PipelineOptions(list(arguments))
    standard = options.view_as(StandardOptions)
    if standard.runner is None:
        standard.runner = IN_PROCESS_RUNNER
        unknown = options.get_all_options(retain_unknown_options=True).keys() - options.get_all_options().keys()
        if unknown:
            raise ConfigurationError(f"--{min(unknown)}", "is no option of this pipeline, nor of Beam; see --help")
    return options


def run(pipeline: beam.Pipeline) -> dict[str, int]:
    """Run to the end; Beam's counters of `MergeRecords`, by name."""
    result = pipeline.run()
    result.wait_until_finish()
    counters = result.metrics().query(MetricsFilter().with_namespace(METRICS_NAMESPACE))["counters"]
    return {counter.key.metric.name: counter.result for counter in counters}


class Outcomes(NamedTuple):
    """What became of the elements of one `MergeRecords`."""

    merged: int
    duplicate: int
    expired: int
    dead_letter: int

    @classmethod
    def of(cls, name: str, counters: Mapping[str, int]) -> Outcomes:
        """From the counters of `run`."""
        records = (counters.get(f"{name}:record_{outcome}", 0) for outcome in ("merged", "duplicate", "expired"))
        return cls(*records, counters.get(f"{name}:dead_letter", 0))

    def __str__(self) -> str:
        texts = [f"{self.merged:,} merged", f"{self.duplicate:,} duplicate"]
        if self.expired:
            texts.append(f"{self.expired:,} expired")
        return " / ".join([*texts, f"{self.dead_letter:,} dead-lettered"])


class ShowProgress(beam.DoFn):
    """Says on stderr how many elements have come through; on a terminal in one line that changes.

    Args:
        what: plural of what is counted, such as ``flights``.
        total: how many there will be, if that is known.
    """

    def __init__(self, what: str, total: int | None = None) -> None:
        super().__init__()
        self._what = what
        self._total = total

    def setup(self) -> None:
        """Start counting."""
        self._seen = 0
        self._started_s = time.monotonic()
        self._next_s = self._started_s
        self._in_place = sys.stderr.isatty()

    def process(self, element: Any) -> None:
        """Count one element."""
        self._seen += 1
        if self._seen % 256 == 0 and time.monotonic() >= self._next_s:
            self._show()
            self._next_s = time.monotonic() + (_IN_PLACE_EVERY_S if self._in_place else _LINE_EVERY_S)

    def finish_bundle(self) -> None:
        """Say how many it were, and leave the line."""
        if self._in_place:
            self._show()
            print(file=sys.stderr)

    def _show(self) -> None:
        per_s = self._seen / max(time.monotonic() - self._started_s, 1e-3)
        of_total = f" of {self._total:,} ({self._seen / self._total:4.0%})" if self._total else ""
        text = f"{self._seen:>9,}{of_total} {self._what}, {per_s:,.0f}/s"
        print(
            f"\r{text:<70}" if self._in_place else text, end="" if self._in_place else "\n", file=sys.stderr, flush=True
        )


def write_dead_letters(letters: beam.PCollection, path: str) -> None:
    """Write dead letters to one JSON Lines file, which `pipelines.replay` reads; no file if there are none.

    Raises:
        ConfigurationError: there is such a file already. It may hold the only copy of what an earlier run gave up.
    """
    if FileSystems.exists(path):
        raise ConfigurationError(
            "--dead_letters", f"{path} holds those of an earlier run; replay and remove it, or name another file"
        )
    _ = (
        letters
        | "DeadLetterToJson" >> beam.Map(DeadLetter.to_json)
        | "WriteDeadLetters" >> beam.io.WriteToText(path, shard_name_template="", num_shards=1, skip_if_empty=True)
    )


def quiet() -> None:
    """Keep Beam's warnings about clouds that are not used off the screen; errors still show, and only once."""
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    # Logs whatever a step raises, which comes out of the pipeline as well.
    logging.getLogger("apache_beam.runners.common").setLevel(logging.CRITICAL)
    logging.getLogger().setLevel(logging.ERROR)

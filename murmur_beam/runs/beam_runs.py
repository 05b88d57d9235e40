"""Code shared by the Beam pipelines: options, running, progress and the file of dead letters."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from murmur_beam.quiet_beam import beam  # isort: split

from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.metrics import Metrics, MetricsFilter
from apache_beam.options.pipeline_options import (
    GoogleCloudOptions,
    PipelineOptions,
    SetupOptions,
    StandardOptions,
    TestOptions,
    WorkerOptions,
)

from murmur_beam.beam_metrics import METRICS_NAMESPACE
from murmur_beam.errors import ConfigurationError, MurmurError
from murmur_beam.files.compressed import split_name
from murmur_beam.files.letter_files import FLAG, Identity, LetterFile
from murmur_beam.files.matching import is_remote
from murmur_beam.files.names import shown
from murmur_beam.model import DeadLetter
from murmur_beam.runs.command_line import with_underscores
from murmur_beam.runs.console import Progress
from murmur_beam.runs.endings import Reasons

IN_PROCESS_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
"""Beam's runner inside this process: it downloads nothing, unlike the ``DirectRunner`` of newer versions."""


_HYPHENATED = "--job-server-timeout"
"""The only flag of Beam that is spelt with hyphens."""


def beam_options(arguments: Sequence[str]) -> PipelineOptions:
    """Beam's options, from the arguments that a pipeline's parser left over; runs in this process unless a runner is
    named.

    Raises:
        ConfigurationError: a flag is unknown. Other runners add flags, and check them.
    """
    options = PipelineOptions([word if word.startswith(_HYPHENATED) else with_underscores(word) for word in arguments])
    standard = options.view_as(StandardOptions)
    if standard.runner is None:
        standard.runner = IN_PROCESS_RUNNER
        unknown = options.get_all_options(retain_unknown_options=True).keys() - options.get_all_options().keys()
        if unknown:
            raise ConfigurationError(
                f"--{min(unknown)}", "is neither an option of this pipeline nor of Beam; see --help"
            )
    return options


def on_dataflow(options: PipelineOptions) -> bool:
    """Return whether Dataflow will run the pipeline."""
    return str(options.view_as(StandardOptions).runner).rpartition(".")[2].lower() == "dataflowrunner"


def only_built(options: PipelineOptions) -> bool:
    """Return whether a job for Dataflow is only built here, for a dry run or for a template's launcher to start."""
    unstarted = options.view_as(TestOptions).dry_run or options.view_as(GoogleCloudOptions).template_location
    return on_dataflow(options) and bool(unstarted)


def check_dataflow(options: PipelineOptions, places: Iterable[tuple[str, str | None]], cache: str | None) -> None:
    """Find mistakes that would otherwise fail or lose data on Dataflow's workers, which lack this machine's files.

    Args:
        options: of the pipeline; for other runners nothing is checked.
        places: flag and value of the store, and of each file and folder.
        cache: value of ``--cache``.

    Raises:
        ConfigurationError: a place is on this machine only, or the workers would lack this library.
        MurmurError: Google's clients are not installed.
    """
    if not on_dataflow(options):
        return
    try:
        importlib.import_module("apache_beam.runners.dataflow.internal.apiclient")
    except ImportError as err:
        raise MurmurError(
            f"Dataflow's clients are not installed ({err}); run: pip install 'murmur-beam[dataflow]'"
        ) from err
    for flag, place in places:
        scheme = "bigtable://" if flag == "--store" else "gs://"
        if place is not None and not place.startswith(scheme):
            raise ConfigurationError(
                flag, f"{place} is on one machine, where Dataflow's workers cannot reach it; write {scheme}..."
            )
    if cache is not None:
        raise ConfigurationError(
            "--cache", f"{cache} is useful only if a single process merges; leave it out on Dataflow"
        )
    setup = options.view_as(SetupOptions)
    if not (setup.setup_file or setup.extra_packages or options.view_as(WorkerOptions).sdk_container_image):
        raise ConfigurationError(
            "--setup_file",
            "is missing: Dataflow's workers need this library. In a clone of it write --setup_file ./setup.py, or name "
            "its wheel with --extra_package, or an image that contains it with --sdk_container_image",
        )


def new_pipeline(options: PipelineOptions) -> beam.Pipeline:
    """An empty pipeline.

    Raises:
        MurmurError: the runner refuses the options.
    """
    try:
        return beam.Pipeline(options=options)
    except ValueError as err:
        raise MurmurError(" ".join(str(err).split())) from err


def tell_job(options: PipelineOptions, result: Any) -> None:
    """Print the address of a job that was just launched on Dataflow, on stderr; nothing for other runners."""
    if only_built(options):
        print("the job for Dataflow was built, but not started", file=sys.stderr)
    elif on_dataflow(options):
        cloud = options.view_as(GoogleCloudOptions)
        job = f"{cloud.region}/{result.job_id()}?project={cloud.project}"
        print(f"see https://console.cloud.google.com/dataflow/jobs/{job}", file=sys.stderr)


def run(pipeline: beam.Pipeline) -> dict[str, int]:
    """Run a pipeline to the end; the counters of `MergeRecords`, by name, or none if the job is `only_built`."""
    result = pipeline.run()
    tell_job(pipeline.options, result)
    if only_built(pipeline.options):
        return {}
    result.wait_until_finish()
    counters = result.metrics().query(MetricsFilter().with_namespace(METRICS_NAMESPACE))["counters"]
    # Prism reports None for counters that were never incremented.
    return {counter.key.metric.name: counter.result or 0 for counter in counters}


_REASON = "reason: "
_APPEND_BYTES = 1 << 20
_REPORT_EVERY = 256  # reading the time costs more than counting


class ShowProgress(beam.DoFn):
    """Reports the number of elements on stderr.

    Args:
        what: plural noun of the elements, such as ``flights``.
        total: expected number, if known.
    """

    def __init__(self, what: str, total: int | None = None) -> None:
        super().__init__()
        self._what = what
        self._total = total

    def setup(self) -> None:
        """Start counting."""
        self._progress = Progress(self._what, self._total)
        self._unreported = 0

    def process(self, element: Any) -> None:
        """Count one element."""
        self._unreported += 1
        if self._unreported == _REPORT_EVERY:
            self._progress.add(self._unreported)
            self._unreported = 0

    def finish_bundle(self) -> None:
        """Print the final count and end the progress line."""
        self._progress.end(self._unreported)
        self._unreported = 0


class RemoteLetters:
    """A file of dead letters in one of Beam's file systems, which cannot be appended to.

    Args:
        path: of the file.
        tried: write an empty file next to it now, to find out whether writing is allowed.

    Raises:
        ConfigurationError: the file exists and is not empty, so it may hold the only copy of an earlier run's dead
            letters; or it cannot be written.
    """

    def __init__(self, path: str, *, tried: bool) -> None:
        self.path = path
        try:
            found = FileSystems.match([path])[0].metadata_list
            if tried and not found:
                FileSystems.create(self.unfinished).close()
                FileSystems.delete([self.unfinished])
        except Exception as err:  # each file system raises different errors
            raise ConfigurationError(FLAG, f"{path} cannot be written to: {str(err).strip().splitlines()[-1]}") from err
        if found and found[0].size_in_bytes:
            raise ConfigurationError(
                FLAG,
                f"{path} holds dead letters of an earlier run; replay and remove it, or name another file, such as "
                "dead-{date}-{time}.jsonl",
            )

    @property
    def unfinished(self) -> str:
        """Name of the file while it is written."""
        return f"{self.path}.part"

    def close(self) -> None:
        """Do nothing: no file is open."""


def hold_letters(path: str, *, tried: bool = True) -> LetterFile | RemoteLetters:
    """Reserve the file for dead letters before the run; the caller closes it after the run.

    Args:
        path: of the file.
        tried: whether this process writes a remote file, so that writing can be tested here.

    Raises:
        ConfigurationError: the file cannot be written to, or holds letters already.
    """
    return RemoteLetters(path, tried=tried) if is_remote(path) else LetterFile(path, new=True)


def write_dead_letters(letters: Sequence[beam.PCollection], file: LetterFile | RemoteLetters) -> None:
    """Write dead letters to one JSON Lines file, which `murmur replay` reads.

    A local file is appended to while the pipeline runs. If a bundle is retried, its letters are in the file twice; a
    replay takes the second ones for duplicates. A remote file is written as a whole or not at all.

    Args:
        letters: of all steps that make letters. A separate step writes each collection: to flatten them, Beam's runner
            in this process would hold all their elements.
        file: from `hold_letters`.
    """
    for i, some in enumerate(letters):
        _ = some | f"CountReasons{i}" >> beam.ParDo(CountReasons())
        if isinstance(file, LetterFile):
            # Workers may have other working folders.
            path = os.path.abspath(file.path)
            _ = some | f"WriteDeadLetters{i}" >> beam.ParDo(AppendLetters(path, file.identity))
    if isinstance(file, LetterFile):
        return
    # Not with Beam's `WriteToText`: its side inputs are too large for Flink's checkpoints.
    _ = (
        letters
        | "Dead" >> beam.Flatten()
        | "DeadLetterToJson" >> beam.Map(lambda letter: ("", DeadLetter.to_json(letter)))
        | "OneFile" >> beam.GroupByKey()
        | "WriteDeadLetters" >> beam.MapTuple(lambda _, lines: _write_lines(file.unfinished, file.path, lines))
    )


class CountReasons(beam.DoFn):
    """Counts the reasons of dead letters in Beam's metrics, for `reasons_of`."""

    def setup(self) -> None:
        """Start counting."""
        self._reasons = Reasons()

    def process(self, letter: DeadLetter) -> None:
        """Count one letter."""
        Metrics.counter(METRICS_NAMESPACE, f"{_REASON}{self._reasons.add(letter)}").inc()


def reasons_of(counters: Mapping[str, int]) -> Reasons:
    """The reasons that `CountReasons` has counted, from the counters of `run`."""
    return Reasons({name.removeprefix(_REASON): n for name, n in counters.items() if name.startswith(_REASON)})


class AppendLetters(beam.DoFn):
    """Appends dead letters to a local file, which the launching program has reserved, and syncs it after each bundle.

    Args:
        path: of the file.
        identity: of the file.
    """

    def __init__(self, path: str, identity: Identity) -> None:
        super().__init__()
        self._path = path
        self._identity = identity
        self._file: LetterFile | None = None

    def start_bundle(self) -> None:
        """Forget the letters of a bundle that failed."""
        self._lines: list[bytes] = []
        self._bytes = 0

    def process(self, letter: DeadLetter) -> None:
        """Buffer one letter, and append the buffer when it is large."""
        self._lines.append(DeadLetter.to_json(letter).encode("utf-8") + b"\n")
        self._bytes += len(self._lines[-1])
        if self._bytes >= _APPEND_BYTES:
            self._append(sync=False)

    def finish_bundle(self) -> None:
        """Append the rest."""
        if self._file is not None or self._lines:
            self._append(sync=True)

    def teardown(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _append(self, *, sync: bool) -> None:
        try:
            self._file = self._file or LetterFile.again(self._path, self._identity)
            self._file.write(b"".join(self._lines))
            if sync:
                self._file.sync()
        except OSError as err:
            raise MurmurError(f"{FLAG}: {shown(self._path)}: {err.strerror or err}") from err
        self._lines, self._bytes = [], 0


def _write_lines(unfinished: str, path: str, lines: Iterable[str]) -> None:
    """Write a file as a whole or not at all, however often this is interrupted and retried."""
    with FileSystems.create(unfinished, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        codec = next(iter(split_name(path)[1]), None)
        for some in _pieces(lines):
            file.write(some if codec is None else codec.compress(some))
    FileSystems.rename([unfinished], [path])


def _pieces(lines: Iterable[str]) -> Iterator[bytes]:
    held: list[bytes] = []
    n_bytes = 0
    for line in lines:
        held.append(line.encode("utf-8") + b"\n")
        n_bytes += len(held[-1])
        if n_bytes >= _APPEND_BYTES:
            yield b"".join(held)
            held, n_bytes = [], 0
    if held:
        yield b"".join(held)


def quiet() -> None:
    """Hide Beam's warnings about clouds that are not used; errors are still shown, but only once."""
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    # It logs the errors of steps, which the pipeline raises as well.
    logging.getLogger("apache_beam.runners.common").setLevel(logging.CRITICAL)
    logging.getLogger().setLevel(logging.ERROR)

"""The Beam side: `MergeRecords`, its `MergeDoFn`, and the options that configure it from a command line."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from types import UnionType
from typing import Any, Union, get_args, get_type_hints
from uuid import NAMESPACE_DNS, uuid5

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import DoOutputsTuple, TaggedOutput
from apache_beam.transforms.window import GlobalWindows
from apache_beam.typehints.row_type import RowTypeConstraint
from apache_beam.utils.windowed_value import WindowedValue

from murmur_beam.beam_metrics import BeamRecorder
from murmur_beam.config import needs_event_id
from murmur_beam.errors import ConfigurationError
from murmur_beam.fields import MESSAGE_ID
from murmur_beam.fold_policy import RowSampler
from murmur_beam.fold_stage import FoldDoFn
from murmur_beam.merger import Merger
from murmur_beam.model import DeadLetter, MergeResult
from murmur_beam.option import documented
from murmur_beam.options import MergeOptions, add_flags, from_flags
from murmur_beam.spec import MergeSpec, resolve
from murmur_beam.times import parse_rfc3339

MERGED = "merged"
DEAD_LETTER = "dead_letter"
ROWS = "rows"
"""Names of rows to fold, for `FoldDoFn`."""

_OPTIONS_PREFIX = "murmur_"
_log = logging.getLogger(__name__)


def _register(row: type) -> None:
    """Register the schema of a NamedTuple with Beam, which takes annotations in text, and ``X | None``, for Any.

    Beam would make up another id for the schema in each process, and Dataflow may refuse to update a job whose coders
    have changed.
    """
    row.__annotations__ = {
        name: Union[get_args(hint)] if isinstance(hint, UnionType) else hint  # noqa: UP007 - that is what Beam takes
        for name, hint in get_type_hints(row).items()
    }
    schema_id = uuid5(NAMESPACE_DNS, f"{row.__module__}.{row.__qualname__} {row.__annotations__}")
    RowTypeConstraint.from_user_type(row).set_schema_id(str(schema_id))
    beam.coders.registry.register_coder(row, beam.coders.RowCoder)


def _message_classes() -> tuple[type, ...]:
    """Beam's class of Pub/Sub messages, if the pipeline has imported it."""
    pubsub = sys.modules.get("apache_beam.io.gcp.pubsub")
    return () if pubsub is None else (pubsub.PubsubMessage,)


_register(MergeResult)
_register(DeadLetter)


class MurmurOptions(PipelineOptions):
    """Flags ``--murmur_store``, ``--murmur_key`` and so on: whatever `MergeRecords` is not given in Python."""

    @classmethod
    def _add_argparse_args(cls, parser: Any) -> None:
        add_flags(parser, _OPTIONS_PREFIX, spelt_twice=True)


@documented
@dataclass(eq=False, repr=False)
class MergeRecords(MergeOptions, beam.PTransform):
    """Fold each element into keyed aggregates, exactly once per (key, event id).

    Elements may be bytes or Pub/Sub messages (JSON unless ``decode`` says otherwise), dicts, objects, or the dead
    letters of an earlier run. An argument that is not given is taken from the pipeline's `MurmurOptions`, so that
    ``MergeRecords()`` works from a command line alone.

    The result has two outputs, and each input element makes exactly one element of one of them, with its own
    timestamp and windows: ``.merged`` of `MergeResult` (merged, duplicate, recorded or expired) and ``.dead_letter``
    of `DeadLetter`. Nothing is emitted before it is committed to the store. A store that appends reports recorded in
    place of merged and duplicate.

    The guarantee holds for as long as the store keeps its markers, per key and event id. An event that is delivered
    again with another id is another event.

    Raises:
        ConfigurationError: when the transform is applied; names the argument that is wrong. Also if the store cannot be
            opened.
    """

    def __post_init__(self) -> None:
        beam.PTransform.__init__(self)

    def default_label(self) -> str:
        """``MergeRecords(NAME)``, so that one pipeline may have several."""
        return "MergeRecords" if self.name is None else f"MergeRecords({self.name})"

    def expand(self, elements: beam.PCollection) -> DoOutputsTuple:
        """Apply to a PCollection; the outputs are ``merged`` and ``dead_letter``."""
        spec = self._resolve(elements)
        spec.check_stores()
        spec.check_beside(elements.pipeline)
        if not spec.monoid.commutative:
            _log.warning(
                "%s: monoid %r depends on the order of events, and Beam gives none", spec.name, spec.monoid.name
            )
        tags = [DEAD_LETTER] if spec.fold is None else [DEAD_LETTER, ROWS]
        outputs = elements | "Merge" >> beam.ParDo(MergeDoFn(spec)).with_outputs(*tags, main=MERGED)
        if spec.fold is not None:
            rows = outputs[ROWS]
            rows.element_type = tuple[bytes, int]
            _ = (
                rows
                | "AllRows" >> beam.WindowInto(GlobalWindows())
                | "Fold" >> beam.ParDo(FoldDoFn(spec, at_end=elements.is_bounded))
            )
        outputs[MERGED].element_type = MergeResult
        outputs[DEAD_LETTER].element_type = DeadLetter
        return outputs

    def _resolve(self, elements: beam.PCollection) -> MergeSpec:
        options: PipelineOptions = elements.pipeline.options
        for name in options.get_all_options(retain_unknown_options=True).keys() - options.get_all_options().keys():
            if name.startswith(_OPTIONS_PREFIX):
                raise ConfigurationError(f"--{name}", "is not an option of murmur_beam; see --help")
        fallback = from_flags(options.view_as(MurmurOptions), _OPTIONS_PREFIX)
        if self.key is not None:
            fallback.keys = None
        merged = MergeOptions(**{**fallback.given(), **self.given()})
        if elements.element_type in _message_classes() and merged.event_id is None:
            spec = resolve(replace(merged, event_id=MESSAGE_ID))
            if needs_event_id(spec.config, spec.monoid):
                return spec
        return resolve(merged)


class MergeDoFn(beam.DoFn):
    """Buffers a bundle's records, merges them with one write per touched row, and emits the result of each.

    Only the spec is pickled; stores are opened in `setup`, one for each process. If the store waits for a network, a
    full buffer is merged while the next one fills. The rest is written before the bundle ends.

    Args:
        spec: from `murmur_beam.spec.resolve`.
    """

    def __init__(self, spec: MergeSpec) -> None:
        super().__init__()
        self._spec = spec

    def setup(self) -> None:
        """Open the stores."""
        self._recorder = BeamRecorder(self._spec.config.recorder)
        self._merger: Merger[WindowedValue] = Merger(self._spec, self._recorder, _message)
        self._held: list[Iterable[WindowedValue | TaggedOutput]] = []
        self._sampler = None if self._spec.fold is None else RowSampler(self._spec.config.clock.uniform)

    def start_bundle(self) -> None:
        """Forget the rest of a bundle that failed; the runner delivers it again."""
        self._merger.clear()
        self._recorder.clear()
        self._held.clear()

    def process(
        self, element: Any, windowed: WindowedValue = beam.DoFn.WindowedValueParam
    ) -> Iterable[WindowedValue | TaggedOutput]:
        """Buffer an element; when the buffer is full, merge it and emit the results."""
        if not self._merger.add(element, windowed.timestamp_micros, windowed):
            return ()
        outputs = self._outputs(self._merger.flush_behind())
        self._recorder.report_samples()
        if len(windowed.windows) == 1:
            return outputs
        # Beam emits each output once for each window of the current element, which would repeat every output; at the
        # end of a bundle there is no current element.
        self._held.append(outputs)
        return ()

    def finish_bundle(self) -> Iterable[WindowedValue | TaggedOutput]:
        """Merge and emit the rest."""
        self._held.append(self._outputs(self._merger.flush()))
        for outputs in self._held:
            yield from outputs
        self._recorder.report()

    def teardown(self) -> None:
        """Close the stores, unless another step of this process uses them."""
        self._merger.close()

    def _outputs(
        self, results: Iterable[tuple[WindowedValue, MergeResult | DeadLetter]]
    ) -> Iterator[WindowedValue | TaggedOutput]:
        """Outputs for Beam, made one by one as it takes them."""
        sampler = self._sampler
        for windowed, result in results:
            output = windowed.with_value(result)
            if isinstance(result, DeadLetter):
                yield TaggedOutput(DEAD_LETTER, output)
                continue
            yield output
            if sampler is not None and sampler.picks():
                for row in self._merger.row_keys(result):
                    yield TaggedOutput(ROWS, windowed.with_value((row, 1)))


def _message(letter: DeadLetter) -> Any:
    # Imported only when it is needed: Beam's module prints a warning for each Google client that is not installed.
    from apache_beam.io.gcp.pubsub import PubsubMessage

    published = letter.publish_time and parse_rfc3339(letter.publish_time)
    return PubsubMessage(
        letter.payload, dict(letter.attributes), letter.message_id, published, letter.ordering_key or ""
    )

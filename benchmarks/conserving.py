"""The parts of `benchmarks.hostile`, each run in its own process: a book compares all outputs with the inputs.

The book is kept in this process, by steps that Beam fuses with `MergeRecords`: an element is in the book from when it
is made until it is emitted. So a bundle may have any size, and is never held as a whole.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from datetime import date
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any, NamedTuple

from murmur_beam.quiet_beam import beam  # isort: split

from benchmarks.harness import peak_mb, say
from benchmarks.malformed import FORMATS, HEADER, Counted, Format, Made, large
from murmur_beam.model import DeadLetter, MergeResult
from murmur_beam.programs import merge_files
from murmur_beam.reader import Reader
from murmur_beam.runs.beam_runs import IN_PROCESS_RUNNER, quiet
from murmur_beam.runs.beam_runs import run as run_pipeline
from murmur_beam.transforms import DEAD_LETTER, MERGED, MergeRecords

BUNDLE = 100_000
"""Records of one bundle."""
LARGE_BYTES = 10_000_000
REPLAY_EVERY = 100
"""One dead letter of this many is replayed, up to `MAX_REPLAYED`."""
MAX_REPLAYED = 2_000

_FIRST_DAY = date(1970, 1, 1)
_SAY_EVERY = 10_000
_MERGE = {"key": "page", "value": "n", "monoid": "sum", "event_id": "id", "event_time": "at", "window": "daily"}


class Figures(NamedTuple):
    """Figures of the records of one part.

    Attributes:
        part: its name.
        records: number of inputs.
        kinds: number of their kinds.
        outputs: number of outputs.
        merged: outputs that were merged or duplicates.
        letters: outputs that are dead letters.
        replayed: dead letters that were replayed.
        unequal: outputs with another payload or another side than the input, or without an input.
        lost: inputs without an output, by kind.
        rows_wrong: aggregates that differ from the recount.
        before_mb: peak memory of the process after a first small run.
        after_mb: peak memory at the end.
        cpu_us: time of the process for each record, including making and checking it.
    """

    part: str
    records: int
    kinds: int
    outputs: int
    merged: int
    letters: int
    replayed: int
    unequal: int
    lost: dict[str, int]
    rows_wrong: int
    before_mb: float
    after_mb: float
    cpu_us: float

    @property
    def grown_mb(self) -> float:
        """Memory that the records needed."""
        return self.after_mb - self.before_mb

    @property
    def changed(self) -> int:
        """Records that were lost or changed; most of the lost ones made an unequal output."""
        return max(self.unequal, sum(self.lost.values()))


class Book:
    """Digests of the inputs without an output, and the expected counts of the good records.

    Args:
        sample: gets some of the dead letters, a line each; None for no sample.
    """

    def __init__(self, sample: IO[str] | None = None) -> None:
        self.kinds: set[str] = set()
        self.records = self.merged = self.letters = self.unequal = self.sampled = 0
        self.counted: Counter[tuple[str, date]] = Counter()
        self._sample = sample
        self._ids: set[str] = set()
        self._open: defaultdict[bytes, list[str]] = defaultdict(list)

    def enter(self, made: Made) -> None:
        """Note a record before it is merged."""
        self.records += 1
        self.kinds.add(made.kind)
        self._open[_digest(made.data, dead=made.counted is None)].append(made.kind)
        if made.counted is not None:
            self._count(made.counted)

    def enter_again(self, payload: bytes) -> None:
        """Note a dead letter before it is replayed."""
        self.records += 1
        self._open[_digest(payload, dead=True)].append("replayed")

    def letter(self, letter: DeadLetter) -> None:
        """Check a dead letter off."""
        self.letters += 1
        line = DeadLetter.to_json(letter)
        if DeadLetter.from_json(line) != letter:
            self.unequal += 1
        self._close(letter.payload, dead=True)
        if self._sample and self.letters % REPLAY_EVERY == 1 and self.sampled < MAX_REPLAYED:
            self.sampled += 1
            self._sample.write(line + "\n")

    def result(self, result: MergeResult) -> None:
        """Check a merged record off."""
        self.merged += 1
        self._close(result.element, dead=False)

    def left(self) -> Counter[str]:
        """Number of records without an output, by kind."""
        return Counter(kind for kinds in self._open.values() for kind in kinds)

    def _count(self, counted: Counted) -> None:
        if counted.event_id not in self._ids:
            self._ids.add(counted.event_id)
            self.counted[counted.page, counted.day] += counted.n

    def _close(self, data: bytes, *, dead: bool) -> None:
        digest = _digest(data, dead=dead)
        kinds = self._open.get(digest)
        if kinds is None:
            self.unequal += 1
            return
        kinds.pop()
        if not kinds:
            del self._open[digest]


def _digest(data: bytes, *, dead: bool) -> bytes:
    return blake2b(data, digest_size=16, person=b"dead" if dead else b"merged").digest()


_book = Book()
"""The book of this process. It is not in the steps, since Beam pickles those."""


class Enter(beam.DoFn):
    """Makes the records of a range of numbers.

    Args:
        decode: name of the format.
        size: of large records, in bytes; None for ordinary sizes.
    """

    def __init__(self, decode: str, size: int | None) -> None:
        super().__init__()
        self._decode = decode
        self._size = size

    def process(self, numbers: tuple[int, int]) -> Iterator[bytes]:
        """Note each one in the book, and emit it."""
        for made in _format(self._decode, self._size).records(*numbers):
            if _book.records % _SAY_EVERY == 0:
                say(f"{_book.records:,} {self._decode} records")
            _book.enter(made)
            yield made.data


class EnterAgain(beam.DoFn):
    """Reads dead letters from a file."""

    def process(self, path: str) -> Iterator[DeadLetter]:
        """Note each one in the book, and emit it."""
        with open(path, "rb") as lines:
            for line in lines:
                letter = DeadLetter.from_json(line)
                _book.enter_again(letter.payload)
                yield letter


class Leave(beam.DoFn):
    """Checks the outputs of `MergeRecords` off the book."""

    def process(self, output: Any) -> None:
        """Check off a result or a dead letter."""
        if "payload" in output._fields:
            _book.letter(DeadLetter(*output))
        else:
            _book.result(output)


def through_runner(decode: str, n: int, folder: str, size: int | None = None, bundle: int = BUNDLE) -> Figures:
    """Merge records on Beam's own runner, bundle by bundle, and replay some of the letters.

    Args:
        decode: "json" or "csv".
        n: number of records.
        folder: an empty folder for the store.
        size: of large records, in bytes.
        bundle: records of one bundle.
    """
    quiet()
    _run_bundle(Book(), decode, f"sqlite:///{folder}/warm.db", (0, _format(decode).smallest()), None)
    uri, sample = f"sqlite:///{folder}/counts.db", f"{folder}/sample.jsonl"
    before_mb, started_s = peak_mb(), time.process_time()
    with open(sample, "w", encoding="utf-8") as letters:
        book = Book(letters)
        for first in range(0, n, bundle):
            _run_bundle(book, decode, uri, (first, min(first + bundle, n)), size)
    cpu_us = (time.process_time() - started_s) / n * 1e6
    replayed = Book()
    _run(replayed, lambda p: p | beam.Create([sample]) | beam.ParDo(EnterAgain()) | _merge(decode, uri))
    say("")
    return Figures(
        part=f"{decode}, {size / 1e6:g} MB each" if size else decode,
        records=book.records,
        kinds=len(book.kinds),
        outputs=book.merged + book.letters,
        merged=book.merged,
        letters=book.letters,
        replayed=replayed.letters,
        unequal=book.unequal + replayed.unequal,
        lost=dict(book.left() + replayed.left()),
        rows_wrong=_rows_wrong(uri, book.counted),
        before_mb=before_mb,
        after_mb=peak_mb(),
        cpu_us=cpu_us,
    )


def through_file(decode: str, n: int, folder: str) -> Figures:
    """Let `merge_files` merge a file of all records that fit into a file, and check its file of dead letters.

    Args:
        decode: "json" or "csv".
        n: number of records.
        folder: an empty folder for the file, the store and the letters.
    """
    made = FORMATS[decode]
    _in_file(made, made.smallest(), Path(folder, "warm"), Book())
    book = Book()
    before_mb, started_s = peak_mb(), time.process_time()
    uri, outcomes = _in_file(made, n, Path(folder, "file"), book)
    merged = sum(outcomes.values()) - book.letters
    left = book.left()
    for kind in made.good:
        # Merged records of a file show in the state only.
        del left[kind]
    return Figures(
        part=f"{decode} file",
        records=book.records,
        kinds=len(book.kinds),
        outputs=sum(outcomes.values()),
        merged=merged,
        letters=book.letters,
        replayed=0,
        unequal=book.unequal,
        lost=dict(left),
        rows_wrong=_rows_wrong(uri, book.counted),
        before_mb=before_mb,
        after_mb=peak_mb(),
        cpu_us=(time.process_time() - started_s) / max(book.records, 1) * 1e6,
    )


def _format(decode: str, size: int | None = None) -> Format:
    return large(size) if size else FORMATS[decode]


def _merge(decode: str, uri: str) -> MergeRecords:
    return MergeRecords("hostile", **_MERGE, decode=decode, store=uri)


def _run_bundle(book: Book, decode: str, uri: str, numbers: tuple[int, int], size: int | None) -> None:
    _run(book, lambda p: p | beam.Create([numbers]) | beam.ParDo(Enter(decode, size)) | _merge(decode, uri))


def _run(book: Book, build: Callable[[beam.Pipeline], Any]) -> None:
    """Run a pipeline that ends in `MergeRecords`, with this book."""
    global _book
    _book = book
    pipeline = beam.Pipeline(runner=IN_PROCESS_RUNNER)
    outputs = build(pipeline)
    for name in (MERGED, DEAD_LETTER):
        _ = outputs[name] | f"Leave {name}" >> beam.ParDo(Leave())
    run_pipeline(pipeline)


def _in_file(made: Format, n: int, base: Path, book: Book) -> tuple[str, dict[str, int]]:
    """Merge a file of records; the URI of the store, and the counts that `merge_files` prints."""
    path, letters, uri = f"{base}.{made.decode}", Path(f"{base}-letters.jsonl"), f"sqlite:///{base}.db"
    with open(path, "wb") as file:
        if made.decode == "csv":
            file.write(HEADER + b"\n")
        for record in made.records(0, n):
            line = line_of(made.decode, record.data)
            if line is not None:
                book.enter(record)
                file.write(line + b"\n")
    said = io.StringIO()
    flags = [f"--{name}={value}" for name, value in _MERGE.items()]
    with contextlib.redirect_stdout(said):
        merge_files.main([f"--input={path}", f"--store={uri}", f"--dead_letters={letters}", *flags])
    if letters.exists():
        with letters.open("rb") as lines:
            for line in lines:
                book.letter(DeadLetter.from_json(line))
    summary = said.getvalue().partition("\n")[0]
    return uri, {name: int(number.replace(",", "")) for number, name in (p.split() for p in summary.split(" / "))}


def line_of(decode: str, data: bytes) -> bytes | None:
    """A record as a line of a file, without the line end; None if the file would hold something else: nothing, several
    records, or a record that continues in the next line."""
    if decode == "csv":
        if not data.startswith(HEADER + b"\n") or data.count(b'"') % 2:
            return None
        data = data[len(HEADER) + 1 :]
        outside = b"".join(data.split(b'"')[::2])
    else:
        outside = data
    whole = data.strip() and not any(end in outside for end in (b"\n", b"\r"))
    return data if whole else None


def _rows_wrong(uri: str, wanted: Counter[tuple[str, date]]) -> int:
    with Reader.open(uri) as reader:
        found = {(key.entity, key.bucket): value for key, value in reader.store.scan()}
    expected = {(page, (day - _FIRST_DAY).days): n for (page, day), n in wanted.items()}
    return sum(found.get(row) != expected.get(row) for row in found.keys() | expected.keys())

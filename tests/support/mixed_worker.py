"""A process of one release or the other, depending on its PYTHONPATH; `released.Release` starts it.

It receives the name of a function below and its arguments, and sends the function's result, or the error.
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing, redirect_stderr, redirect_stdout
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

BATCH = 500
_TRIES = 20


def whereabouts() -> tuple[str, str]:
    """Version and file of the library."""
    import murmur_beam

    return murmur_beam.__version__, murmur_beam.__file__


def merge(pipe: Connection, uri: str, monoid: str, events: Sequence[tuple[str, str, Any]]) -> dict[str, Any]:
    """Merge events, after the signal of the other side.

    Args:
        pipe: to the other side.
        uri, monoid: of the store.
        events: each an id, a key and a delta; or, in place of a delta, a value and its time in microseconds and
            nanoseconds.

    Returns:
        The number of events with each outcome, and when that began and ended.
    """
    from murmur_beam.errors import TransientError
    from murmur_beam.model import Key, Update
    from murmur_beam.monoids import by_name
    from murmur_beam.state import spec_from_uri

    folds = by_name(monoid)

    def lifted(delta: Any) -> Any:
        if not isinstance(delta, tuple):
            return delta
        value, at_us, ns = delta
        return folds.lift_ns(value, at_us, ns) if ns else folds.lift(value, at_us)

    outcomes: Counter[str] = Counter()
    with closing(spec_from_uri(uri).open(folds)) as store:
        pipe.send(("ready", None))
        pipe.recv()
        began_s = time.monotonic()
        for start in range(0, len(events), BATCH):
            left = [Update(Key(key), lifted(delta), event_id) for event_id, key, delta in events[start : start + BATCH]]
            for _ in range(_TRIES):
                results = store.merge_updates(left)
                outcomes.update(
                    str(getattr(r, "value", None) or repr(r)) for r in results if not isinstance(r, TransientError)
                )
                left = [update for update, r in zip(left, results, strict=True) if isinstance(r, TransientError)]
                if not left:
                    break
            else:
                outcomes["tried too often"] += len(left)
    return {"outcomes": dict(outcomes), "began_s": began_s, "ended_s": time.monotonic()}


def values(uri: str, monoid: str) -> dict[str, Any]:
    """All aggregates of a table without a window."""
    from murmur_beam.monoids import by_name
    from murmur_beam.state import spec_from_uri

    with closing(spec_from_uri(uri).open(by_name(monoid))) as store:
        return {key.entity: value for key, value in store.scan()}


def program(module: str, argv: Sequence[str]) -> tuple[int, str, str]:
    """Run the ``main`` of a module: exit code, output and errors."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = import_module(module).main(list(argv)) or 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 2
            print(end.code, file=err)
        except Exception as error:
            if not hasattr(error, "problem") and "murmur_beam" not in type(error).__module__:
                raise
            code = 2
            print(f"{type(error).__name__}: {error}", file=err)
    return code, out.getvalue(), err.getvalue()


def golden_bigtable(place: tuple[str, str], prefix: str) -> None:
    """Make the tables of the golden files, and merge into them."""
    from tests.support import storage

    storage.make_bigtable(place, prefix)
    storage.write_bigtable(place, prefix)


def golden_sqlite(path: str) -> None:
    """Merge the content of the golden file of SQLite into a file."""
    from tests.support import storage

    storage.write_sqlite(Path(path))


def serve(pipe: Connection) -> None:
    """Execute requests, until the other side closes the pipe."""
    while True:
        try:
            name, arguments = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            result = merge(pipe, *arguments) if name == "merge" else globals()[name](*arguments)
        except Exception as err:
            pipe.send(("error", (type(err).__name__, str(err))))
        else:
            pipe.send(("result", result))


if __name__ == "__main__":
    # Output of libraries is of no use here.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    serve(Connection(int(sys.argv[1])))

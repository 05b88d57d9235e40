"""Reads a table as it is: its families and its recorded purpose."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import NamedTuple

import grpc
from google.auth.exceptions import GoogleAuthError

from murmur_beam.errors import StoreUnavailable
from murmur_beam.state.bigtable import wire
from murmur_beam.state.bigtable.admin import Admin, Family
from murmur_beam.state.bigtable.connection import Connection
from murmur_beam.state.bigtable.grpc_errors import lacks_transactions
from murmur_beam.state.bigtable.meta import Meta, read_meta
from murmur_beam.state.bigtable.spec import BigtableSpec


class TableState(NamedTuple):
    """A table as it is.

    Attributes:
        families: by name; None if the table does not exist.
        meta: the recorded purpose; None if nothing is recorded.
    """

    families: dict[str, Family] | None
    meta: Meta | None


def look(where: BigtableSpec, admin: Admin) -> TableState:
    """Read a table's families and its record."""
    families = admin.families()
    if not families or wire.META not in families:
        return TableState(families, None)
    with data(where, folds=True) as connection:
        return TableState(families, connection.run(read_meta(connection)))


@contextmanager
def data(where: BigtableSpec, *, folds: bool = False) -> Iterator[Connection]:
    """A client of the table's data. Its errors do not refer to ``murmur check``, since that command shows them.

    Args:
        where: the table.
        folds: with the app profile of folds, with which the record is read and written, too: on several clusters, what
            is written in one is not in the others at once.
    """
    try:
        with closing(where.connect(folds=folds)) as connection:
            yield connection
    except StoreUnavailable as err:
        cause = err.__cause__ or err
        if lacks_transactions(cause):
            raise StoreUnavailable(str(err).partition("; see: murmur check")[0]) from err
        text = cause.details() if isinstance(cause, grpc.aio.AioRpcError) else str(cause)
        raise StoreUnavailable(f"{where}: {text}; this needs a role such as roles/bigtable.user") from err
    except GoogleAuthError as err:
        raise StoreUnavailable(f"{where}: {err}") from err


def clusters_text(clusters: list[str], *, appends: bool) -> str:
    """The warning about a table that is on several clusters.

    Args:
        clusters: their names.
        appends: whether the table is appended to.
    """
    what, events = ("folds run in", "events") if appends else ("commits go to", "redelivered events")
    return (
        f"{len(clusters)} clusters ({', '.join(clusters)}): {what} one of them; if another takes over before all are "
        f"replicated, {events} count twice, permanently: let replication catch up first (docs/operations.md)"
    )

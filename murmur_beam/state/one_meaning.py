"""Checks that two steps of one pipeline that write to one table mean the same aggregate, which an unused table cannot
show.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from murmur_beam.state.adapted import as_spec
from murmur_beam.state.base import Schema, SpecLike

_meanings: WeakKeyDictionary[Any, dict[Any, Schema]] = WeakKeyDictionary()


def require_one_meaning(pipeline: Any, spec: SpecLike, schema: Schema) -> None:
    """Note what a step of a pipeline writes to a table.

    Args:
        pipeline: any object that lives as long as the steps may meet.
        spec: the table; specs with the same ``place``, or equal ones, are of the same table.
        schema: what is written.

    Raises:
        SchemaMismatch: another step of the pipeline writes something else there.
    """
    meanings = _meanings.setdefault(pipeline, {})
    place = as_spec(spec).place
    known = meanings.setdefault(place, schema)
    known.require(schema, f"in another step of this pipeline, {spec}")
    if known.names(schema):
        meanings[place] = known._replace(field=schema.field)

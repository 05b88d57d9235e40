"""Shows options by their types: ``int``, not ``Annotated[int, Option(...)]``; the page of options has their texts."""

from __future__ import annotations

from typing import Any

import griffe


class PlainTypes(griffe.Extension):
    """Takes what describes an option out of its annotation, where mkdocstrings reads it."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Called for each field of a class."""
        annotation = attr.annotation
        if isinstance(annotation, griffe.ExprSubscript) and annotation.canonical_path == "typing.Annotated":
            attr.annotation = next(iter(annotation.slice.elements))  # type: ignore[union-attr]

"""Names of files in messages."""

from __future__ import annotations

import os


def shown(name: str) -> str:
    """A printable form of a file's name: bytes that are not UTF-8, and control characters, are escaped."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)

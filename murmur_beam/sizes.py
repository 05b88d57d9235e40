"""Sizes in bytes, as people read them."""

from __future__ import annotations


def size_text(size: float) -> str:
    """A number of bytes, for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1_000:
            return f"{size:.4g} {unit}"
        size /= 1_000
    return f"{size:.4g} TB"

"""The file for those dead letters that their topic does not take: one too large for a message, above all."""

from __future__ import annotations

import os
from collections.abc import Sequence

from murmur_beam.errors import ConfigurationError
from murmur_beam.model import DeadLetter
from pipelines.letter_files import LetterFile


class OverflowFile:
    """A `LetterFile` that is made when its first letter comes.

    Args:
        path: of the file, which is appended to.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._file: LetterFile | None = None

    def keep(self, letters: Sequence[DeadLetter]) -> list[Exception | None]:
        """Append them and wait until the disk has them."""
        try:
            self._file = self._file or LetterFile(self.path)
        except ConfigurationError as err:
            return [err] * len(letters)
        return self._file.keep(letters)

    def close(self) -> None:
        """Close the file, if there is one."""
        if self._file is not None:
            self._file.close()


def why_not(path: str) -> str | None:
    """What would keep a file from being written, as far as that can be told without making it; None for nothing."""
    folder = os.path.dirname(path) or "."
    if os.path.isdir(path):
        return "it is a folder"
    if not os.path.isdir(folder):
        return f"there is no folder {folder}"
    if not os.access(path if os.path.exists(path) else folder, os.W_OK):
        return "that is not allowed"
    return None

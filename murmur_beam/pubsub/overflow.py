"""The file for dead letters that their topic refuses, mostly because they are too large for a message."""

from __future__ import annotations

import os
from collections.abc import Sequence

from murmur_beam.errors import ConfigurationError
from murmur_beam.files.letter_files import LetterFile
from murmur_beam.model import DeadLetter


class OverflowFile:
    """A `LetterFile` that is created with its first letter.

    Args:
        path: of the file, which is appended to.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._file: LetterFile | None = None

    def keep(self, letters: Sequence[DeadLetter]) -> list[Exception | None]:
        """Append letters; see `Letters.keep`."""
        try:
            self._file = self._file or LetterFile(self.path)
        except ConfigurationError as err:
            return [err] * len(letters)
        return self._file.keep(letters)

    def close(self) -> None:
        """Close the file, if it was created."""
        if self._file is not None:
            self._file.close()


def why_not(path: str) -> str | None:
    """The reason why a file cannot be written, as far as can be seen without creating it; None if it can."""
    folder = os.path.dirname(path) or "."
    if os.path.isdir(path):
        return "it is a folder"
    if not os.path.isdir(folder):
        return f"the folder {folder} does not exist"
    if not os.access(path if os.path.exists(path) else folder, os.W_OK):
        return "permission denied"
    return None

"""Code shared by the ``murmur`` command and the pipelines: one-line usage errors, and output to a closed pipe."""

from __future__ import annotations

import argparse
import os
import sys
from typing import NoReturn

USAGE_ERROR = 2


class OneLineErrorParser(argparse.ArgumentParser):
    """An argument parser that reports an error in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Report a usage error and exit with code 2."""
        program = self.prog.rpartition(".")[2].partition(" ")[0]
        self.exit(USAGE_ERROR, f"{program}: error: {message} (see {self.prog} --help)\n")


def discard_output() -> None:
    """Send further output to the null device: after a BrokenPipeError Python's flush at exit would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

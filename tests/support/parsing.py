"""The real parsers of the pipelines, without the rest of the pipelines."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from typing import Any

import pytest

from murmur_beam.runs.console import Parser


class Parsed(Exception):
    """The result of a pipeline's parser; raised, so that nothing else of the pipeline runs.

    Attributes:
        parser: the pipeline's own.
        flags: its flags.
        others: the flags that it leaves to Beam.
    """

    def __init__(self, parser: argparse.ArgumentParser, flags: argparse.Namespace, others: list[str]) -> None:
        super().__init__()
        self.parser = parser
        self.flags = flags
        self.others = others


def parse(module: str, argv: Sequence[str]) -> Parsed:
    """Let the ``main`` of a module, such as ``murmur pubsub``, parse a command line, and no more.

    Raises:
        SystemExit: it refuses the command line.
    """
    parse_known_args = argparse.ArgumentParser.parse_known_args

    def stop(parser: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
        raise Parsed(parser, *parse_known_args(parser, args, namespace))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Parser, "parse_known_args", stop)
        try:
            importlib.import_module(module).main(argv)
        except Parsed as parsed:
            return parsed
    raise AssertionError(f"{module} parses nothing")

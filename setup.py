"""For ``--setup_file ./setup.py`` of a Beam runner, and for old tools: the metadata is in pyproject.toml."""

from setuptools import setup

setup()

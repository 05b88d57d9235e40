"""Runnable pipelines: each module has a ``main(argv)`` and runs as ``python -m pipelines.NAME``."""

"""``python -m pipelines.replay``, for a clone: the same as ``murmur replay``."""

from murmur_beam.programs.replay import main
from murmur_beam.runs.console import program

if __name__ == "__main__":
    program(main)

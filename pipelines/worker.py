"""``python -m pipelines.worker``, for a clone: the same as ``murmur worker``."""

from murmur_beam.programs.worker import main
from murmur_beam.runs.console import program

if __name__ == "__main__":
    program(main)

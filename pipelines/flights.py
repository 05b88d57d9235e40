"""``python -m pipelines.flights``, for a clone: the same as ``murmur flights``."""

from murmur_beam.programs.flights import main
from murmur_beam.runs.console import program

if __name__ == "__main__":
    program(main)

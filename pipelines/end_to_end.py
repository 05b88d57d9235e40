"""``python -m pipelines.end_to_end``, for a clone: the same as ``murmur end-to-end``."""

from murmur_beam.programs.end_to_end import main
from murmur_beam.runs.console import program

if __name__ == "__main__":
    program(main)

"""``python -m pipelines.merge_files``, for a clone: the same as ``murmur merge-files``."""

from murmur_beam.programs.merge_files import main
from murmur_beam.runs.console import program

if __name__ == "__main__":
    program(main)

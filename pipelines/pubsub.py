"""``python -m pipelines.pubsub``, for a clone: the same as ``murmur pubsub``."""

from murmur_beam.programs.pubsub import main
from murmur_beam.runs.console import program

if __name__ == "__main__":
    program(main)

"""The program of the Flex Template ``pubsub``."""

import sys

from launch import flags

from murmur_beam.programs.pubsub import main

if __name__ == "__main__":
    sys.exit(main(flags(sys.argv[1:])))

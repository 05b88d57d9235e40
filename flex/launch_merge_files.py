"""The program of the Flex Template ``merge_files``."""

import sys

from launch import flags

from murmur_beam.programs.merge_files import main

if __name__ == "__main__":
    sys.exit(main(flags(sys.argv[1:])))

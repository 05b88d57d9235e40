"""Tests of what the pages say, and of the benchmarks that their figures come from."""

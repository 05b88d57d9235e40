"""Benchmarks: each a module with a `main`, run as ``python -m benchmarks.NAME``; none of them is a test."""

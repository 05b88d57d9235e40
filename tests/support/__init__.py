"""Helpers of the tests; none of these modules holds a test."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""Folder of the checkout."""

"""Tests of the stores, and of the programs and classes that read them."""

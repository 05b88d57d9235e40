"""Tests of the transform on a runner, and of the programs that pipelines are."""

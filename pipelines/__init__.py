"""For a clone: ``python -m pipelines.NAME`` runs a program of `murmur_beam.programs`."""

"""murmur_beam: keyed aggregates for Apache Beam, each event counted exactly once."""

__version__ = "0.1.0"

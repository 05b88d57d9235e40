"""Pub/Sub without Beam: pulls messages, merges them, acknowledges them, and publishes dead letters."""

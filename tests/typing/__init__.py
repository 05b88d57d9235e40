"""A user's program, for type checkers; nothing here is a test."""

"""The command ``murmur``: `main` finds a command by its name; the other modules hold commands, or what they share."""

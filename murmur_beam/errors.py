"""What can go wrong, by what cures it: waiting (transient), changing the input (permanent), changing the code.

Every message says what is wrong, where, and what to do about it.
"""

from __future__ import annotations


class MurmurError(Exception):
    """Base of every error this library raises on purpose."""


class ConfigurationError(MurmurError, ValueError):
    """An argument or option is wrong; raised while the pipeline is built, never on a worker's first record.

    Args:
        argument: name of the offending argument, as the caller wrote it.
        problem: what is wrong with it and what to write instead.
    """

    def __init__(self, argument: str, problem: str) -> None:
        super().__init__(argument, problem)
        self.argument = argument
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.argument}: {self.problem}"


class TransientError(MurmurError):
    """A failure that a later try may not meet again: a timeout, a lock, an overloaded server."""


class PermanentError(MurmurError):
    """A failure that no retry can cure. It is raised straight away.

    Attributes:
        keys: entities of the record that could not be merged, filled in by the processor.
    """

    keys: tuple[str, ...] = ()


class InvalidRecord(PermanentError):
    """One field of a record cannot be used.

    Args:
        field: ``event_id``, ``event_time``, ``key``, ``value``, or a field of the user's own record.
        problem: what is wrong with it.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(field, problem)
        self.field = field
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}"


class SchemaMismatch(PermanentError):
    """The store holds another kind of value, or buckets of another length, than it was opened for."""


class StoreUnavailable(PermanentError):
    """The store cannot be used as configured: no such file or table, or no permission."""


class RetriesExhausted(MurmurError):
    """Every try of at least one key was used up; the last failure is the ``__cause__``.

    The record's other keys keep what was written for them.

    Attributes:
        pipeline_name: as given to the processor.
        event_id: the record's event id.
        keys: the entities that failed, in the record's order.
        attempts: tries made for each of them.
        reason: text of the last failure. Runners hand an exception on without its cause.
    """

    def __init__(
        self, pipeline_name: str, event_id: str | None, keys: tuple[str, ...], attempts: int, reason: str = ""
    ) -> None:
        super().__init__(pipeline_name, event_id, keys, attempts, reason)
        self.pipeline_name = pipeline_name
        self.event_id = event_id
        self.keys = keys
        self.attempts = attempts
        self.reason = reason

    def __str__(self) -> str:
        reason = self.reason or (f"{type(self.__cause__).__name__}: {self.__cause__}" if self.__cause__ else "")
        return (
            f"{self.pipeline_name}: event {self.event_id!r} failed {self.attempts} times "
            f"for {', '.join(map(repr, self.keys))}{reason and f': {reason}'}"
        )


class MergeCancelled(MurmurError):
    """The caller's ``cancel`` event was set while a merge waited to try again."""

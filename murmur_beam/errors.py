"""Errors, grouped by their cure: waiting (transient), changing the input (permanent), changing the code.

Every message says what is wrong, where, and what to do.
"""

from __future__ import annotations


class MurmurError(Exception):
    """Base class of the errors that this library raises deliberately."""


class ConfigurationError(MurmurError, ValueError):
    """An argument or option is wrong; raised while the pipeline is built, never on a worker's first record.

    Args:
        argument: name of the wrong argument, as the caller wrote it.
        problem: what is wrong with the argument, and what to write instead.
    """

    def __init__(self, argument: str, problem: str) -> None:
        super().__init__(argument, problem)
        self.argument = argument
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.argument}: {self.problem}"


class MissingExtra(ImportError):
    """A module needs packages of an optional extra, which are not installed; it raises this when it is imported.

    Args:
        extra: name of the extra, as in ``pip install 'murmur-beam[extra]'``.
        cause: the error of the missing package.
    """

    def __init__(self, extra: str, cause: ImportError) -> None:
        super().__init__(
            f"needs a package that is not installed ({cause}); run: pip install 'murmur-beam[{extra}]'",
            name=cause.name,
        )


class TransientError(MurmurError):
    """A failure that a retry may avoid: a timeout, a lock, an overloaded server."""


class PermanentError(MurmurError):
    """A failure that retries cannot cure. It is raised without a retry.

    Attributes:
        keys: entities of the record that could not be merged, filled in by the processor.
    """

    keys: tuple[str, ...] = ()


class InvalidRecord(PermanentError):
    """One field of a record cannot be used.

    Args:
        field: ``event_id``, ``event_time``, ``key``, ``value``, or a field of the user's own record.
        problem: what is wrong with the field.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(field, problem)
        self.field = field
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}"


class SchemaMismatch(PermanentError):
    """The store was opened for another kind of value, or another bucket length, than it holds."""


class StoreUnavailable(PermanentError):
    """The store cannot be used as configured: no such file or table, or no permission."""


class RetriesExhausted(MurmurError):
    """At least one key of a record failed in every try; the last failure is the ``__cause__``.

    The record's other keys stay merged.

    Attributes:
        pipeline_name: as given to the processor.
        event_id: the record's event id.
        keys: the entities that failed, in the record's order.
        attempts: number of tries for each of these entities.
        reason: text of the last failure, since runners pass an exception on without its cause.
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
    """The caller set ``cancel`` while a merge waited for its next try."""

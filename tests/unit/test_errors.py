"""Errors say what is wrong, where, and what to do; and they are pickled without loss."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest

from murmur_beam import errors
from murmur_beam.errors import (
    ConfigurationError,
    InvalidRecord,
    MergeCancelled,
    MurmurError,
    PermanentError,
    RetriesExhausted,
    SchemaMismatch,
    StoreUnavailable,
    TransientError,
)
from murmur_beam.monoids.sum import Overflow

EXAMPLES: list[MurmurError] = [
    MurmurError("text"),
    ConfigurationError("store", "no such scheme"),
    TransientError("busy", 7),
    PermanentError("never"),
    InvalidRecord("value", "is not a number"),
    SchemaMismatch("sum, not max"),
    StoreUnavailable("no such table"),
    RetriesExhausted("p", "e1", ("a", "b"), 3),
    MergeCancelled("cancelled"),
    Overflow("too much"),
]


def through_pickle(error: MurmurError) -> MurmurError:
    """A copy of the error, as a worker process sends it."""
    sent: MurmurError = pickle.loads(pickle.dumps(error))
    return sent


def test_every_error_has_an_example() -> None:
    """So that a new one is pickled below, too."""
    defined = {thing for thing in vars(errors).values() if isinstance(thing, type) and issubclass(thing, MurmurError)}
    assert defined <= {type(example) for example in EXAMPLES}


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("send", [through_pickle, copy.copy, copy.deepcopy])
def test_it_survives_pickle_and_copy(error: MurmurError, send: Callable[[MurmurError], MurmurError]) -> None:
    """Type, text and attributes are those of the original."""
    arrived = send(error)
    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
    assert arrived.args == error.args
    assert vars(arrived) == vars(error)


def test_keys_that_are_set_later_survive_too() -> None:
    """The processor sets ``keys`` on the error that the store raised."""
    error = InvalidRecord("value", "is not a number")
    error.keys = ("a", "b")
    arrived = through_pickle(error)
    assert isinstance(arrived, InvalidRecord)
    assert arrived.keys == ("a", "b")
    assert PermanentError("other").keys == ()


def test_retries_exhausted_identifies_the_event() -> None:
    """Pipeline, event, keys and attempts; the cause is in the text where there is one."""
    error = RetriesExhausted("orders", "e1", ("a", "b"), 3)
    assert (error.pipeline_name, error.event_id, error.keys, error.attempts) == ("orders", "e1", ("a", "b"), 3)
    assert str(error) == "orders: event 'e1' failed 3 times for 'a', 'b'"
    error.__cause__ = TimeoutError("10 s")
    assert str(error).endswith("'b': TimeoutError: 10 s")


def test_a_configuration_error_is_a_value_error_that_names_its_argument() -> None:
    """Callers that do not know this library catch it as a ValueError."""
    error = ConfigurationError("window", "must be positive")
    assert isinstance(error, ValueError)
    assert str(error) == "window: must be positive"


@pytest.mark.parametrize("error", [InvalidRecord("key", "x"), SchemaMismatch(), StoreUnavailable(), Overflow()])
def test_errors_that_no_retry_cures_are_permanent(error: MurmurError) -> None:
    """The processor distinguishes them by this class."""
    assert isinstance(error, PermanentError)
    assert not isinstance(error, TransientError)


@pytest.mark.parametrize("error", [RetriesExhausted("p", None, ("a",), 1), MergeCancelled(), TransientError()])
def test_errors_that_a_redelivery_cures_are_not_permanent(error: MurmurError) -> None:
    """A driver may try the whole record again later."""
    assert not isinstance(error, PermanentError)

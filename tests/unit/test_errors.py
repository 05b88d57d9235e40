"""Errors say what is wrong, where, and what to do; and they travel between processes whole."""

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
    """As when a worker process reports it."""
    sent: MurmurError = pickle.loads(pickle.dumps(error))
    return sent


def test_every_error_has_an_example_here() -> None:
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


def test_keys_filled_in_later_survive_too() -> None:
    """The processor sets ``keys`` on the error that the store made."""
    error = InvalidRecord("value", "is not a number")
    error.keys = ("a", "b")
    arrived = through_pickle(error)
    assert isinstance(arrived, InvalidRecord)
    assert arrived.keys == ("a", "b")
    assert PermanentError("other").keys == ()


def test_retries_exhausted_has_all_it_takes_to_find_the_event() -> None:
    """Pipeline, event, keys and attempts; the cause is in the text where there is one."""
    error = RetriesExhausted("orders", "e1", ("a", "b"), 3)
    assert (error.pipeline_name, error.event_id, error.keys, error.attempts) == ("orders", "e1", ("a", "b"), 3)
    assert str(error) == "orders: event 'e1' failed 3 times for 'a', 'b'"
    error.__cause__ = TimeoutError("10 s")
    assert str(error).endswith("'b': TimeoutError: 10 s")


def test_a_configuration_error_is_a_value_error_that_names_its_argument() -> None:
    """Callers that know nothing of this library catch it as what it is."""
    error = ConfigurationError("window", "must be positive")
    assert isinstance(error, ValueError)
    assert str(error) == "window: must be positive"


@pytest.mark.parametrize("error", [InvalidRecord("key", "x"), SchemaMismatch(), StoreUnavailable(), Overflow()])
def test_what_no_retry_can_cure_is_permanent(error: MurmurError) -> None:
    """The processor tells them from the others by this class."""
    assert isinstance(error, PermanentError)
    assert not isinstance(error, TransientError)


@pytest.mark.parametrize("error", [RetriesExhausted("p", None, ("a",), 1), MergeCancelled(), TransientError()])
def test_what_a_redelivery_can_cure_is_not_permanent(error: MurmurError) -> None:
    """A driver may try the whole record again later."""
    assert not isinstance(error, PermanentError)

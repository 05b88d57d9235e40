"""Makes stores safe for forks. A child has none of its parent's threads: their locks stay locked in the child forever,
their work stays half done, and an inherited SQLite file or gRPC channel cannot be used but can harm the parent's.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol

WAIT_S = 40.0
"""Longest time that a fork waits for threads that use a store; longer than SQLite waits for another process."""


class Holder(Protocol):
    """An object that must not be in use while its process is forked.

    Attributes:
        lock: a `threading.Lock`, held by the thread that uses the object. A fork waits for it, for at most `WAIT_S`.
    """

    lock: Any

    def let_go(self) -> None:
        """Close what a child must not inherit; called before a fork, with the lock held."""

    def be_torn(self) -> None:
        """Called in a child if a thread of the parent held the lock during the fork."""


class Lock:
    """A lock that is free in each child of a fork, for short critical sections that are safe to interrupt by a fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        with _turn:
            _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.release()

    def renew(self) -> None:
        """Replace the lock by a free one, in a child."""
        self._lock = threading.Lock()


_turn = threading.Lock()  # one fork at a time, and no new holders or locks meanwhile
_held: list[Holder] = []
_locks: weakref.WeakSet[Lock] = weakref.WeakSet()
_holders: weakref.WeakSet[Any] = weakref.WeakSet()


def watch(holder: Holder) -> None:
    """Make forks wait for this holder, as long as it is alive."""
    with _turn:
        _holders.add(holder)


def in_each_child(call: Callable[[], None]) -> None:
    """Register a function to call in every child, if the system supports forks."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=call)


def _before() -> None:
    _turn.acquire()
    deadline = time.monotonic() + WAIT_S
    for holder in list(_holders):
        if holder.lock.acquire(timeout=max(deadline - time.monotonic(), 0.0)):
            _held.append(holder)
            holder.let_go()


def _in_parent() -> None:
    while _held:
        _held.pop().lock.release()
    _turn.release()


def _in_child() -> None:
    global _turn
    _turn = threading.Lock()
    for lock in list(_locks):
        lock.renew()
    for holder in list(_holders):
        holder.lock = threading.Lock()
        if holder not in _held:
            holder.be_torn()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)

"""The fault proxy of `benchmarks.appending`, in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

from google.cloud.bigtable_v2.types import MutateRowsRequest

from benchmarks.append_base import BURIED, LATE_S
from tests.support.fault_proxy import MUTATE_ROWS, Fault, FaultProxy, Plan

PLAN = {
    Fault.REFUSE: 0.02,
    Fault.EXHAUST: 0.005,
    Fault.CUT: 0.0005,
    Fault.LOSE: 0.03,
    Fault.EXPIRE: 0.02,
    Fault.EXHAUST_AFTER: 0.005,
    Fault.CUT_AFTER: 0.0005,
    Fault.TWICE: 0.01,
    Fault.STRAGGLE: 0.03,
    Fault.DELAY: 0.02,
}
"""Faults of requests: 12 % fail, most of them after the write was done."""
KEPT = 400
"""MutateRows requests that may be repeated much later."""


def serve_proxy(pipe: Connection, upstream: str, seed: int, replay_s: float) -> None:
    """Run the fault proxy. The pipe gets its address; then the proxy answers each command.

    ``calm`` ends all faults and waits for late writes. ``replay`` repeats all requests that were kept, and returns
    their number. ``counts`` returns the counts and the faults. Until it is calm, the proxy repeats a request now and
    then.

    Args:
        pipe: to the other side.
        upstream: ``host:port`` of the emulator.
        seed: of its random numbers.
        replay_s: seconds between two requests that it repeats.
    """
    with FaultProxy(upstream, Plan(PLAN, seed, late_s=LATE_S, whole_reads=True), keeps=KEPT) as proxy:
        proxy.spared = _spared
        pipe.send(proxy.address)
        calm = False
        while True:
            if not pipe.poll(replay_s):
                if not calm:
                    proxy.replay(1)
                continue
            try:
                command = pipe.recv()
            except EOFError:
                return
            answer: Any = None
            if command == "calm":
                calm = True
                proxy.plan = Plan({}, whole_reads=True)
                proxy.drain()
            elif command == "replay":
                answer = proxy.replay()
            else:
                answer = dict(proxy.counts), proxy.faults
            pipe.send(answer)


def _spared(method: str, request: bytes) -> bool:
    """Whether a request deletes rows, which must not happen after its answer, or writes to buried rows."""
    if method != MUTATE_ROWS:
        return False
    return BURIED.encode() in request or (b"\x22\x00" in request and any(_deletes_row(request)))


def _deletes_row(request: bytes) -> Iterator[bool]:
    for entry in MutateRowsRequest.pb().FromString(request).entries:
        for mutation in entry.mutations:
            yield mutation.HasField("delete_from_row")

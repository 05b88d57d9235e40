"""Starts the real Bigtable emulator for tests, on a free port, and stops it again."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest
from google.cloud.bigtable_admin_v2 import types
from google.cloud.bigtable_admin_v2.services.bigtable_table_admin import BaseBigtableTableAdminClient
from google.cloud.bigtable_admin_v2.services.bigtable_table_admin.transports import BigtableTableAdminGrpcTransport

PROJECT, INSTANCE = "test-project", "test-instance"
_tables = itertools.count()


def find_bigtable() -> str | None:
    """The emulator's program: on the PATH, or in the folder of the Google Cloud CLI."""
    found = shutil.which("cbtemulator")
    gcloud = shutil.which("gcloud")
    if found is None and gcloud is not None:
        program = Path(gcloud).resolve().parent.parent / "platform" / "bigtable-emulator" / "cbtemulator"
        found = str(program) if program.is_file() else None
    return found


def missing(what: str) -> None:
    """Skip for want of an emulator; with ``CI=true`` fail instead."""
    message = f"{what} is not installed; run: gcloud components install bigtable"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


@contextmanager
def bigtable() -> Iterator[str]:
    """A running emulator's ``host:port``; the environment leads clients to it."""
    program = find_bigtable()
    if program is None:
        missing("the Bigtable emulator (cbtemulator)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [str(program), "--host", "127.0.0.1", "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    host = f"127.0.0.1:{port}"
    before = os.environ.get("BIGTABLE_EMULATOR_HOST")
    try:
        _wait_for(port, process)
        os.environ["BIGTABLE_EMULATOR_HOST"] = host
        yield host
    finally:
        if before is None:
            os.environ.pop("BIGTABLE_EMULATOR_HOST", None)
        else:
            os.environ["BIGTABLE_EMULATOR_HOST"] = before
        process.kill()
        process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        assert process.poll() is None, "the emulator ended at once"
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.02)
    raise AssertionError("the emulator does not answer")


def new_table(host: str) -> str:
    """A table of its own for a test, with the families of `murmur_beam.state.bigtable`."""
    int64 = types.Type.Int64(
        encoding=types.Type.Int64.Encoding(big_endian_bytes=types.Type.Int64.Encoding.BigEndianBytes())
    )
    sums = types.Type.Aggregate(input_type=types.Type(int64_type=int64), sum=types.Type.Aggregate.Sum())
    families = {
        "agg": types.ColumnFamily(value_type=types.Type(aggregate_type=sums)),
        "dedup": types.ColumnFamily(),
        "state": types.ColumnFamily(),
        "meta": types.ColumnFamily(),
    }
    name = f"table-{os.getpid()}-{next(_tables)}"
    with grpc.insecure_channel(host) as channel:
        client = BaseBigtableTableAdminClient(transport=BigtableTableAdminGrpcTransport(channel=channel))
        parent = f"projects/{PROJECT}/instances/{INSTANCE}"
        client.create_table(parent=parent, table_id=name, table=types.Table(column_families=families))
    return name

"""A stand-in for Dataflow and Cloud Storage, as far as a launch needs them: it keeps its requests, and runs nothing.

Beam's own clients send HTTP requests to it, so that a test can read the content that the service would get: the job,
and the files of its staging folder, the pipeline among them.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import google_crc32c

_JOBS = re.compile(r"/v1b3/projects/([^/]+)/locations/([^/]+)/jobs(?:/([^/:]+))?(?:/(\w+))?$")
ENDPOINT = "http://dataflow.sandbox.test"
"""For ``--dataflow_endpoint``. To a name with "sandbox" in it Beam sends HTTP, not gRPC, and treats it otherwise as the
real service: it checks options as strictly, and builds the same job. ``http_proxy`` leads it here."""

_OBJECTS = re.compile(r"(?:/(upload|download))?/storage/v1/b/([^/]+)(?:/o(?:/(.+))?)?$")


@dataclass
class DataflowService:
    """The received requests.

    Attributes:
        url: of the storage and of the tokens; as a proxy it is Dataflow's own.
        jobs: the created ones, as JSON, each with an ``id``, ``projectId`` and ``location``.
        files: contents by ``gs://BUCKET/NAME``.
        state: the state to report for every job.
        looks: how often a client asked for it.
        counters: the counters to report for every finished job, by name, in the namespace ``murmur_beam``.
    """

    url: str
    jobs: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    state: str = "JOB_STATE_DONE"
    looks: int = 0
    counters: dict[str, int] = field(default_factory=dict)

    def staged(self, name: str) -> bytes:
        """The one file with that name, in any staging folder."""
        (found,) = (content for path, content in self.files.items() if path.rpartition("/")[2] == name)
        return found


@contextmanager
def running() -> Iterator[DataflowService]:
    """The service on a free port, until the end of the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.service = DataflowService(f"http://127.0.0.1:{server.server_port}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="dataflow-service")
    thread.start()
    try:
        yield server.service  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def log_message(self, *args: object) -> None:
        """Log nothing."""

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        service: DataflowService = self.server.service  # type: ignore[attr-defined]
        if job := _JOBS.match(url.path):
            self._dataflow(service, *job.groups(), body)
        elif item := _OBJECTS.match(url.path):
            self._storage(service, *item.groups(), query, body)
        elif url.path == "/token":
            self._send({"access_token": "for-tests", "expires_in": 3600, "token_type": "Bearer"})
        else:
            self._send({"error": {"code": 404, "message": f"no such method: {url.path}"}}, 404)

    def _dataflow(
        self, service: DataflowService, project: str, location: str, job_id: str | None, what: str | None, body: bytes
    ) -> None:
        if self.command == "POST":
            job = {**json.loads(body), "id": f"job-{len(service.jobs)}", "projectId": project, "location": location}
            service.jobs.append(job)
            self._send({**job, "currentState": service.state})
        elif what == "metrics":
            self._send({"metrics": [one for counter in service.counters.items() for one in _counter(*counter)]})
        elif what == "messages":
            self._send({})
        elif job_id is None:
            self._send({"jobs": [_summary(job, service.state) for job in service.jobs]})
        else:
            service.looks += 1
            (job,) = (job for job in service.jobs if job["id"] == job_id)
            self._send(_summary(job, service.state))

    def _storage(
        self,
        service: DataflowService,
        how: str | None,
        bucket: str,
        name: str | None,
        query: dict[str, str],
        body: bytes,
    ) -> None:
        if how == "upload" and self.command == "POST":
            name = query.get("name") or json.loads(body)["name"]
            self._send({}, location=f"{service.url}/upload/storage/v1/b/{bucket}/o?name={name}")
            return
        if how == "upload":
            # Beam's files fit into one piece.
            service.files[f"gs://{bucket}/{query['name']}"] = body
            self._send(_object(bucket, query["name"], body))
            return
        if "/o" not in self.path:
            self._send({"kind": "storage#bucket", "id": bucket, "name": bucket})
            return
        start = f"gs://{bucket}/"
        if name is None:
            found = [path for path in sorted(service.files) if path.startswith(start + query.get("prefix", ""))]
            items = [_object(bucket, path.removeprefix(start), service.files[path]) for path in found]
            self._send({"kind": "storage#objects", "items": items})
            return
        name = unquote(name)
        content = service.files.get(start + name)
        if content is None:
            self._send({"error": {"code": 404, "message": f"no such object: {start}{name}"}}, 404)
        else:
            self._send(_object(bucket, name, content))

    def _send(self, answer: dict[str, Any], status: int = 200, location: str | None = None) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if location is not None:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(content)


def _summary(job: dict[str, Any], state: str) -> dict[str, Any]:
    return {**{key: job[key] for key in ("id", "name", "type", "projectId", "location")}, "currentState": state}


def _object(bucket: str, name: str, content: bytes) -> dict[str, Any]:
    return {
        "kind": "storage#object",
        "bucket": bucket,
        "name": name,
        "size": str(len(content)),
        "crc32c": base64.b64encode(google_crc32c.Checksum(content).digest()).decode(),
        "generation": "1",
        "updated": "2026-01-01T00:00:00Z",
    }


def _counter(name: str, value: int) -> list[dict[str, Any]]:
    """A counter in Dataflow's format: one metric for attempted values, one for committed values."""
    return [
        {"name": {"origin": "user", "name": name, "context": {"namespace": "murmur_beam", **more}}, "scalar": value}
        for more in ({"tentative": "true"}, {})
    ]

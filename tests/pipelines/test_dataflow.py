"""The pipelines as Dataflow receives them: launched by command line against a stand-in of the service, and read back.

Beam's requests are read: the job, the pipeline that it refers to, and the package for the workers. The wheel is
installed in an environment of its own, where every step is unpickled and set up.
"""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.internal import pickler
from apache_beam.portability.api import beam_runner_api_pb2 as proto

from murmur_beam.fold_stage import FoldDoFn
from murmur_beam.model import DeadLetter, MergeResult
from murmur_beam.monoids.count import Count
from murmur_beam.options import MergeOptions
from murmur_beam.programs import pubsub
from murmur_beam.testing.emulators import bigtable
from murmur_beam.transforms import MergeDoFn
from tests.support import ROOT, emulators, installed

pytest.importorskip(
    "apache_beam.runners.dataflow.internal.apiclient",
    reason="Dataflow's clients are not installed; run: pip install -e '.[dataflow]'",
    exc_type=ImportError,
)

from google.cloud.dataflow import JobType

from tests.support import dataflow_page, dataflow_service
from tests.support.dataflow_service import DataflowService

DOCKERFILE = (ROOT / "flex/Dockerfile").read_text("utf-8")
PINNED_BEAM = re.findall(r"^FROM apache/beam_python[\d.]+_sdk:([\d.]+)$", DOCKERFILE, re.MULTILINE)[0]
LAUNCH_S = 120

SUBSCRIPTION = "projects/my-project/subscriptions/views"
TOPIC = "projects/my-project/topics/views-dead"
WHERE = (
    "--runner=DataflowRunner",
    "--project=my-project",
    "--region=europe-west1",
    "--temp_location=gs://my-bucket/tmp",
    f"--dataflow_endpoint={dataflow_service.ENDPOINT}",
)
MERGE = ("--key=page/{page}", "--monoid=count", "--event_id=id", "--window=daily", "--event_time=at")
TO_TOPIC = ("pubsub", f"--subscription={SUBSCRIPTION}", *MERGE, f"--dead_letter_topic={TOPIC}")
TO_FOLDER = (
    "pubsub",
    f"--subscription={SUBSCRIPTION}",
    *MERGE,
    "--dead_letters=gs://my-bucket/dead",
)
FILES = (
    "merge-files",
    "--input=gs://my-bucket/events/*.jsonl",
    *MERGE,
    "--dead_letters=gs://my-bucket/dead.jsonl",
)
MURMUR = ("-m", "murmur_beam")
SETUP = "--setup_file=./setup.py"
WHEEL = "--extra_package=WHEEL"
"""The library's wheel, wherever it is; faster than `SETUP`, which builds a package each time."""
AT_LEAST_ONCE = "--dataflow_service_options=streaming_mode_at_least_once"
MERGE_STEP = "MergeRecords/Merge/ParDo(MergeDoFn)"
BEAM_OPTIONS = (
    "--job_name=views",
    "--service_account_email=murmur-worker@my-project.iam.gserviceaccount.com",
    "--max_num_workers=5",
    "--machine_type=n2-standard-2",
)
TOPIC_JOB = (*TO_TOPIC, SETUP, *BEAM_OPTIONS)
FOLDER_JOB = (*TO_FOLDER, SETUP, AT_LEAST_ONCE)
FILES_JOB = (*FILES, WHEEL)


@dataclass(frozen=True)
class Launched:
    """The results of a launch.

    Attributes:
        code, out, err: of the launching process.
        service: the stand-in that received the job.
    """

    code: int
    out: str
    err: str
    service: DataflowService

    @property
    def job(self) -> dict[str, Any]:
        """The one job that was created."""
        (job,) = self.service.jobs
        return job

    @property
    def environment(self) -> dict[str, Any]:
        """The job's environment."""
        found: dict[str, Any] = self.job["environment"]
        return found

    @property
    def pipeline(self) -> proto.Pipeline:
        """The translated pipeline, from the file that the job points to."""
        url = self.environment["sdkPipelineOptions"]["options"]["pipelineUrl"]
        return proto.Pipeline.FromString(self.service.files[url])


Launch = Callable[..., Launched]


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a clone, since making the workers' package leaves files behind."""
    return installed.copy_sources(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="session")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Writes the key file of a service account whose tokens come from a given URL."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )

    def write(url: str) -> Path:
        path = tmp_path_factory.mktemp("credentials") / "key.json"
        account = {
            "type": "service_account",
            "client_email": "launcher@my-project.iam.gserviceaccount.com",
            "private_key": key.decode(),
            "token_uri": f"{url}/token",
        }
        path.write_text(json.dumps(account), "utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def launch(source: Path, wheel: Path, credentials: Callable[[str], Path], bigtable_host: str) -> Launch:
    """Runs a pipeline's command line against a service of its own, or the given one; adds a store if none is named.

    Equal launches are made once.
    """
    made: dict[object, Launched] = {}
    store = f"--store={emulators.new_uri(bigtable_host)}"

    def run(*argv: str, service: DataflowService | None = None, program: tuple[str, ...] = MURMUR) -> Launched:
        if service is not None:
            return launched(service, argv, program)
        if (argv, program) not in made:
            with dataflow_service.running() as own:
                made[argv, program] = launched(own, argv, program)
        return made[argv, program]

    def launched(service: DataflowService, argv: tuple[str, ...], program: tuple[str, ...]) -> Launched:
        argv = tuple(argument.replace("WHEEL", str(wheel)) for argument in argv)
        service.files["gs://my-bucket/events/one.jsonl"] = b'{"id": "1", "page": "home"}\n'
        command = [*program, argv[0], *WHERE, *argv[1:]] if program == MURMUR else [*program, *WHERE, *argv]
        if not any(argument.startswith("--store=") for argument in argv):
            command.append(store)
        environment = {
            **os.environ,
            "BIGTABLE_EMULATOR_HOST": bigtable_host,
            "GOOGLE_APPLICATION_CREDENTIALS": str(credentials(service.url)),
            "STORAGE_EMULATOR_HOST": service.url,
            "http_proxy": service.url,
            "no_proxy": "127.0.0.1",
        }
        looks = service.looks
        with subprocess.Popen(
            [sys.executable, *command],
            cwd=source,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                if service.state == "JOB_STATE_RUNNING":
                    wait_for_look(service, looks, process)
                    process.send_signal(signal.SIGTERM)
                out, err = process.communicate(timeout=LAUNCH_S)
            finally:
                process.kill()
        return Launched(process.returncode, out, err, service)

    return run


def wait_for_look(service: DataflowService, looks: int, process: subprocess.Popen[str]) -> None:
    """Until the launching process has asked for its job, so that it waits for the job's end."""
    deadline = time.monotonic() + LAUNCH_S
    while service.looks == looks and process.poll() is None:
        assert time.monotonic() < deadline, "the launching process has not asked for the job"
        time.sleep(0.05)


@pytest.fixture
def to_topic(launch: Launch) -> Launched:
    """`murmur pubsub`, dead letters to a topic."""
    return launch(*TOPIC_JOB)


@pytest.fixture
def to_folder(launch: Launch) -> Launched:
    """`murmur pubsub` in at-least-once mode, dead letters to a folder."""
    return launch(*FOLDER_JOB)


@pytest.fixture
def from_files(launch: Launch) -> Launched:
    """`murmur merge-files`, the library as a wheel."""
    return launch(*FILES_JOB)


def step(pipeline: proto.Pipeline, name: str) -> proto.PTransform:
    """The one step with that full name."""
    (found,) = (one for one in pipeline.components.transforms.values() if one.unique_name == name)
    return found


def before(pipeline: proto.Pipeline, name: str) -> set[str]:
    """Names of all steps whose outputs lead to the step with that name."""
    steps = pipeline.components.transforms.values()
    wanted, found = set(step(pipeline, name).inputs.values()), set()
    while makers := {one.unique_name for one in steps if wanted & set(one.outputs.values())} - found:
        found |= makers
        wanted |= {source for maker in makers for source in step(pipeline, maker).inputs.values()}
    return found


def names_of(pipeline: proto.Pipeline) -> list[str]:
    """Full names of the steps without inner steps, sorted, except for the line numbers of lambdas in Beam."""
    steps = pipeline.components.transforms.values()
    return sorted(re.sub(r"<lambda at .*?>", "<lambda>", one.unique_name) for one in steps if not one.subtransforms)


def unpickled(transform: proto.PTransform) -> Any:
    """The DoFn of a step."""
    payload = proto.ParDoPayload.FromString(transform.spec.payload)
    return pickler.loads(payload.do_fn.payload)[0]


def fields_of(pipeline: proto.Pipeline, pcollection: str) -> list[str]:
    """Names of the fields of a PCollection of rows."""
    from apache_beam.portability.api import schema_pb2

    coder = pipeline.components.coders[pipeline.components.pcollections[pcollection].coder_id]
    assert coder.spec.urn == "beam:coder:row:v1"
    return [field.name for field in schema_pb2.Schema.FromString(coder.spec.payload).fields]


def only(values: Any) -> Any:
    """The only item."""
    (value,) = values.values()
    return value


class TestTheJobOfPubsub:
    """`murmur pubsub`, read back from Beam's requests to Dataflow."""

    def test_the_launch_says_where_the_job_is(self, to_topic: Launched) -> None:
        """The address of the job's page is on stderr, and nothing else that a user must read."""
        said = [line for line in to_topic.err.splitlines() if not line.startswith("* ")]  # those are of `build`
        page = "https://console.cloud.google.com/dataflow/jobs/europe-west1/job-0?project=my-project"
        assert (to_topic.code, to_topic.out, said) == (0, "", [f"see {page}"])

    def test_the_read_is_dataflow_s_own(self, to_topic: Launched) -> None:
        """It reads the subscription with attributes, and leaves deduplication by ids to the library."""
        read = step(to_topic.pipeline, "ReadFromPubSub/Read")
        assert read.spec.urn == "beam:transform:pubsub_read:v1"
        payload = proto.PubSubReadPayload.FromString(read.spec.payload)
        assert payload == proto.PubSubReadPayload(subscription=SUBSCRIPTION, with_attributes=True)

    def test_the_merge_step_gets_the_messages(self, to_topic: Launched) -> None:
        """It is `MergeDoFn`, with the arguments of the command line, and its input is the output of the read."""
        merge = step(to_topic.pipeline, MERGE_STEP)
        assert only(merge.inputs) == only(step(to_topic.pipeline, "ReadFromPubSub").outputs)
        fn = unpickled(merge)
        assert type(fn) is MergeDoFn
        assert type(fn._spec.monoid) is Count
        assert str(fn._spec.store).startswith(f"bigtable://{emulators.PROJECT}/{emulators.INSTANCE}/")

    def test_both_outputs_are_rows(self, to_topic: Launched) -> None:
        """The merge step has the outputs merged and dead_letter, with the schemas of their rows."""
        outputs = step(to_topic.pipeline, "MergeRecords").outputs
        assert set(outputs) == {"None", "dead_letter"}  # Beam's name of a main output
        assert fields_of(to_topic.pipeline, outputs["None"]) == list(MergeResult._fields)
        assert fields_of(to_topic.pipeline, outputs["dead_letter"]) == list(DeadLetter._fields)

    def test_dead_letters_go_to_the_topic(self, to_topic: Launched) -> None:
        """Dataflow's own write gets the converted output dead_letter."""
        merge, split = step(to_topic.pipeline, "MergeRecords"), step(to_topic.pipeline, "SplitLetters")
        to_message = step(to_topic.pipeline, "DeadLetterToMessage")
        assert only(split.inputs) == merge.outputs["dead_letter"]
        assert only(to_message.inputs) == split.outputs["None"]
        assert only(to_message.outputs) == only(step(to_topic.pipeline, "WriteDeadLetters").inputs)
        write = step(to_topic.pipeline, "WriteDeadLetters/ParDo(_PubSubWriteDoFn)")
        assert write.spec.urn == "beam:transform:pubsub_write:v1"
        assert proto.PubSubWritePayload.FromString(write.spec.payload) == proto.PubSubWritePayload(topic=TOPIC)

    def test_dead_letters_too_large_for_a_message_go_below_the_temporary_location(self, to_topic: Launched) -> None:
        """Dataflow's own write would refuse them, and retry the bundle forever."""
        write = step(to_topic.pipeline, "WriteLargeLetters")
        assert only(write.inputs) == step(to_topic.pipeline, "SplitLetters").outputs["too_large"]
        assert unpickled(write)._folder == "gs://my-bucket/tmp/dead-letters"

    def test_dead_letters_go_to_a_folder(self, to_folder: Launched) -> None:
        """The step that writes files gets the output dead_letter itself."""
        write = step(to_folder.pipeline, "WriteDeadLetters")
        assert only(write.inputs) == step(to_folder.pipeline, "MergeRecords").outputs["dead_letter"]
        assert unpickled(write)._folder == "gs://my-bucket/dead"

    def test_the_options(self, to_topic: Launched) -> None:
        """A streaming job, in the requested region and with the requested account, name and workers."""
        job, environment = to_topic.job, to_topic.environment
        (pool,) = environment["workerPools"]
        assert (job["name"], job["type"], job["projectId"], job["location"]) == (
            "views",
            2,
            "my-project",
            "europe-west1",
        )
        assert environment["version"]["job_type"] == "FNAPI_STREAMING"
        assert environment["sdkPipelineOptions"]["options"]["streaming"] is True
        assert {"enable_streaming_engine", "use_runner_v2"} <= set(environment["experiments"])
        assert environment["serviceAccountEmail"] == "murmur-worker@my-project.iam.gserviceaccount.com"
        assert environment["tempStoragePrefix"].startswith("storage.googleapis.com/my-bucket/tmp/views")
        assert (pool["machineType"], pool["autoscalingSettings"]["maxNumWorkers"]) == ("n2-standard-2", 5)
        assert pool["workerHarnessContainerImage"].endswith(f"_sdk:{beam.__version__}")
        assert "serviceOptions" not in environment, "exactly-once mode is Dataflow's default"

    def test_at_least_once_mode(self, to_topic: Launched, to_folder: Launched) -> None:
        """The service gets the request for at-least-once mode, and the pipeline is the same as without."""
        assert to_folder.environment["serviceOptions"] == ["streaming_mode_at_least_once"]
        for name in ("ReadFromPubSub/Read", MERGE_STEP):
            assert step(to_topic.pipeline, name).spec == step(to_folder.pipeline, name).spec

    def test_a_fold_stage_is_keyed_by_row(self, launch: Launch) -> None:
        """It has a state and two timers for each row, and gets pairs in one window."""
        pipeline = launch(*TOPIC_JOB, "--fold=10s").pipeline
        fold = step(pipeline, "MergeRecords/Fold")
        assert type(unpickled(fold)) is FoldDoFn
        payload = proto.ParDoPayload.FromString(fold.spec.payload)
        assert set(payload.state_specs) == {"named"}
        assert len(payload.timer_family_specs) == 2
        rows = pipeline.components.pcollections[only(fold.inputs)]
        coders = pipeline.components.coders
        assert coders[rows.coder_id].spec.urn == "beam:coder:kv:v1"
        key, _ = coders[rows.coder_id].component_coder_ids
        assert coders[key].spec.urn == "beam:coder:bytes:v1"
        windowing = pipeline.components.windowing_strategies[rows.windowing_strategy_id]
        assert windowing.window_fn.urn == "beam:window_fn:global_windows:v1"

    def test_the_workers_package_is_the_library(self, to_topic: Launched) -> None:
        """--setup_file sends the source package, which is among the job's packages and installs murmur_beam alone."""
        (pool,) = to_topic.environment["workerPools"]
        assert "workflow.tar.gz" in [package["name"] for package in pool["packages"]]
        with tarfile.open(fileobj=io.BytesIO(to_topic.service.staged("workflow.tar.gz"))) as package:
            held = {name.partition("/")[2]: name for name in package.getnames()}
            top_level = package.extractfile(held["murmur_beam.egg-info/top_level.txt"])
            assert top_level is not None
            assert top_level.read() == b"murmur_beam\n"
        wanted = {path.relative_to(ROOT).as_posix() for path in (ROOT / "murmur_beam").rglob("*.py")}
        assert wanted | {"setup.py", "pyproject.toml", "README.md", "LICENSE"} <= held.keys()

    def test_a_signal_ends_the_launch_and_not_the_job(self, launch: Launch) -> None:
        """The launch of a streaming job may end; the job continues."""
        with dataflow_service.running() as service:
            service.state = "JOB_STATE_RUNNING"
            done = launch(*TO_TOPIC, WHEEL, service=service)
        assert (done.code, done.err.splitlines()[-1]) == (0, "pubsub: the job goes on; stop it where it runs")
        assert len(service.jobs) == 1

    def test_an_update_replaces_the_job_of_that_name(self, launch: Launch) -> None:
        """--update reads the running job's id, and sends a job that replaces it with the same steps."""
        with dataflow_service.running() as service:
            service.state = "JOB_STATE_RUNNING"
            launch(*TO_TOPIC, WHEEL, "--job_name=views", service=service)
            done = launch(*TO_TOPIC, WHEEL, "--job_name=views", "--update", service=service)
        assert done.code == 0, done.err
        assert [job.get("replaceJobId") for job in service.jobs] == [None, "job-0"]


class TestTheJobOfMergeFiles:
    """`murmur merge-files`, read back from Beam's requests to Dataflow."""

    def test_it_is_a_batch_job(self, from_files: Launched) -> None:
        """The launch waits for its end and prints its counters."""
        assert from_files.code == 0, from_files.err
        assert (from_files.job["type"], from_files.job["location"]) == (JobType.JOB_TYPE_BATCH, "europe-west1")
        assert from_files.environment["version"]["job_type"] == "FNAPI_BATCH"
        assert from_files.out == "0 merged / 0 duplicate / 0 dead-lettered\n"

    def test_the_read_knows_the_files(self, from_files: Launched) -> None:
        """The files that the pattern matches are in the job, and their records go to the merge step."""
        steps = from_files.pipeline.components.transforms.values()
        (paths,) = (one for one in steps if one.unique_name.startswith("Paths/FlatMap("))
        assert [*unpickled(paths).process(None)] == [b"gs://my-bucket/events/one.jsonl"]
        merge = step(from_files.pipeline, MERGE_STEP)
        assert only(merge.inputs) == step(from_files.pipeline, "Read").outputs["None"]

    def test_both_outputs_are_rows(self, from_files: Launched) -> None:
        """The merge step has the outputs merged and dead_letter; the second is written."""
        outputs = step(from_files.pipeline, "MergeRecords").outputs
        assert fields_of(from_files.pipeline, outputs["None"]) == list(MergeResult._fields)
        assert fields_of(from_files.pipeline, outputs["dead_letter"]) == list(DeadLetter._fields)
        dead = step(from_files.pipeline, "Dead")
        assert set(dead.inputs.values()) == {
            outputs["dead_letter"],
            step(from_files.pipeline, "Read").outputs["too_long"],
        }
        assert only(step(from_files.pipeline, "DeadLetterToJson").inputs) == only(dead.outputs)
        assert "DeadLetterToJson" in before(from_files.pipeline, "WriteDeadLetters")

    def test_the_workers_package_is_the_wheel(self, from_files: Launched, wheel: Path) -> None:
        """--extra_package sends the wheel as it is."""
        (pool,) = from_files.environment["workerPools"]
        assert wheel.name in [package["name"] for package in pool["packages"]]
        assert from_files.service.staged(wheel.name) == wheel.read_bytes()

    def test_its_counters_are_dataflow_s(self, launch: Launch) -> None:
        """The summary comes from the metrics of the job."""
        with dataflow_service.running() as service:
            service.counters = {"murmur:record_merged": 7, "murmur:record_duplicate": 2, "murmur:dead_letter": 1}
            done = launch(*FILES_JOB, service=service)
        assert done.out.splitlines()[0] == "7 merged / 2 duplicate / 1 dead-lettered"

    def test_a_dry_run_sends_nothing(self, launch: Launch) -> None:
        """--dry_run=true builds the job, says so, and no job is created."""
        done = launch(*FILES_JOB, "--dry_run=true")
        assert (done.code, done.out) == (0, ""), done.err
        assert done.err == "the job for Dataflow was built, but not started\n"
        assert done.service.jobs == []


READ = [f"ReadFromPubSub/{name}" for name in ("Map(_from_proto_str)", "ParDo(_AddMetricsPassThrough)", "Read")]
STEPS = {
    "topic": [
        "DeadLetterToMessage",
        MERGE_STEP,
        *READ,
        "SplitLetters/ParDo(SplitLetters)",
        "WriteDeadLetters/ParDo(_PubSubWriteDoFn)",
        "WriteDeadLetters/ToProtobufX",
        "WriteLargeLetters",
    ],
    "folder": [MERGE_STEP, *READ, "WriteDeadLetters"],
    "files": [
        "CountReasons0",
        "CountReasons1",
        "Dead",
        "DeadLetterToJson",
        MERGE_STEP,
        "OneFile",
        "Paths/FlatMap(<lambda>)",
        "Paths/Impulse",
        "Paths/Map(decode)",
        "Read/ParDo(ReadRecords)",
        "WriteDeadLetters",
    ],
}


class TestStepNames:
    """An update matches the steps of the running job by their names."""

    @pytest.mark.skipif(beam.__version__ != PINNED_BEAM, reason=f"Beam's own names are those of {PINNED_BEAM}")
    @pytest.mark.parametrize(
        ("argv", "names"),
        [
            pytest.param(TOPIC_JOB, STEPS["topic"], id="topic"),
            pytest.param(FOLDER_JOB, STEPS["folder"], id="folder"),
            pytest.param(FILES_JOB, STEPS["files"], id="files"),
        ],
    )
    def test_are_these(self, launch: Launch, argv: tuple[str, ...], names: list[str]) -> None:
        """Any other name means that a running job can only be updated with --transform_name_mapping."""
        assert names_of(launch(*argv).pipeline) == sorted(names)

    @pytest.mark.parametrize("argv", [pytest.param(TOPIC_JOB, id="pubsub"), pytest.param(FILES_JOB, id="merge_files")])
    def test_are_the_same_in_the_next_build(self, launch: Launch, argv: tuple[str, ...]) -> None:
        """Two launches in two processes name their steps, outputs and coders alike."""
        one, two = launch(*argv).pipeline, launch(*argv, "--job_name=again").pipeline
        assert sorted((key, step.unique_name) for key, step in one.components.transforms.items()) == sorted(
            (key, step.unique_name) for key, step in two.components.transforms.items()
        )
        assert one.components.pcollections == two.components.pcollections
        assert one.components.coders == two.components.coders

    @pytest.mark.parametrize(
        "more",
        [
            pytest.param(["--name=other"], id="name"),
            pytest.param(["--monoid=sum", "--value=n"], id="monoid"),
            pytest.param(["--key==all"], id="keys"),
            pytest.param(["--flush_events=10", "--on_exhausted=raise", "--dedup=none"], id="tuning"),
        ],
    )
    def test_do_not_depend_on_the_merge(self, launch: Launch, bigtable_host: str, more: list[str]) -> None:
        """Flags of the merge change the step, not its name."""
        store = f"--store={emulators.new_uri(bigtable_host)}"
        assert names_of(launch(*TO_TOPIC, WHEEL, *more, store).pipeline) == names_of(launch(*TOPIC_JOB).pipeline)


class TestThePage:
    """docs/dataflow.md, word for word, except for the address of the service."""

    def test_its_table_and_its_launches_work(self, launch: Launch, bigtable_host: str) -> None:
        """Its launches accept the table that the page makes, and each of them creates a job."""
        made = [words for words in dataflow_page.commands() if words[:2] == ["murmur", "create-table"]]
        for words in made:
            subprocess.run(
                [sys.executable, "-m", "murmur_beam", *words[1:]],
                env={**os.environ, "BIGTABLE_EMULATOR_HOST": bigtable_host},
                check=True,
                capture_output=True,
            )
        launches = dataflow_page.launches()
        with dataflow_service.running() as service:
            # Files that the page reads, and the job that it updates.
            service.files["gs://my-project-dataflow/events/2026-11-23.jsonl.gz"] = b""
            for words in launches:
                service.state = "JOB_STATE_DONE" if words[0] == "merge-files" else "JOB_STATE_RUNNING"
                done = launch(*words, service=service)
                assert done.code == 0, done.err
        assert [job["type"] for job in service.jobs] == [
            JobType.JOB_TYPE_STREAMING,
            JobType.JOB_TYPE_BATCH,
            JobType.JOB_TYPE_STREAMING,
        ]
        assert service.jobs[2]["replaceJobId"] == service.jobs[0]["id"]


class TestMistakes:
    """A flag that would fail on the workers, or lose data there, fails at the launch: one line, and exit code 2."""

    @pytest.mark.parametrize(
        ("argv", "complaint"),
        [
            pytest.param(
                (*TO_TOPIC, WHEEL, "--store=sqlite:///views.db"),
                "--store: sqlite:///views.db is on one machine",
                id="store",
            ),
            pytest.param((*TO_TOPIC, WHEEL, "--cache=memory://c"), "--cache: memory://c is useful only", id="cache"),
            pytest.param(
                (*TO_FOLDER[:-1], "--dead_letters=dead", WHEEL), "--dead_letters: dead is on one machine", id="folder"
            ),
            pytest.param((*FILES[:-1], WHEEL), "--dead_letters: dead-letters.jsonl is on one machine", id="letters"),
            pytest.param((*FILES, "--input=here.jsonl", WHEEL), "--input: here.jsonl is on one machine", id="input"),
            pytest.param(TO_TOPIC, "--setup_file: is missing: Dataflow's workers need this library", id="setup"),
            pytest.param((*TO_TOPIC, WHEEL, "--project=12"), "Invalid Project ID (12)", id="beam"),
        ],
    )
    def test_are_reported_at_the_launch(self, launch: Launch, argv: tuple[str, ...], complaint: str) -> None:
        """No job is created, and the message names the flag."""
        done = launch(*argv)
        assert (done.code, done.out, done.service.jobs) == (2, "", [])
        assert complaint in done.err
        assert len(done.err.splitlines()) == 1


class TestFlexTemplates:
    """The templates' own programs, started as their launcher starts them: they make a template and no job."""

    @pytest.mark.parametrize(
        ("name", "argv", "keys"),
        [
            pytest.param("pubsub", TO_TOPIC, 2, id="pubsub"),
            pytest.param("merge_files", FILES, 2, id="merge_files"),
        ],
    )
    def test_they_write_the_job_and_end(self, launch: Launch, name: str, argv: tuple[str, ...], keys: int) -> None:
        """The job is in the file that the launcher named; several keys in one parameter are several keys."""
        argv = tuple(one for one in argv[1:] if not one.startswith("--key="))
        template = "gs://my-bucket/staging/template_launches/job_object"
        done = launch(
            *argv,
            "--key=page/{page}|=all",
            WHEEL,
            f"--template_location={template}",
            program=(f"flex/launch_{name}.py",),
        )
        assert (done.code, done.service.jobs) == (0, []), done.err
        environment = json.loads(done.service.files[template])["environment"]
        url = environment["sdkPipelineOptions"]["options"]["pipelineUrl"]
        pipeline = proto.Pipeline.FromString(done.service.files[url])
        merge = unpickled(step(pipeline, MERGE_STEP))
        assert len(merge._spec.extraction.keys) == keys


@pytest.fixture(scope="session")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library's wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            str(folder),
            str(source),
        ],
        check=True,
    )
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="session")
def worker(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment with the wheel and all other packages of this one, but without this source."""
    return installed.environment_with(wheel, tmp_path_factory.mktemp("worker"))


ON_A_WORKER = """\
import sys
from pathlib import Path
import apache_beam
from apache_beam.internal import pickler
from apache_beam.portability.api import beam_runner_api_pb2 as proto
import murmur_beam

assert murmur_beam.__file__.startswith(sys.prefix), murmur_beam.__file__
if len(sys.argv) > 2:
    pickler.load_session(sys.argv[2])
pipeline = proto.Pipeline.FromString(Path(sys.argv[1]).read_bytes())
for step in pipeline.components.transforms.values():
    if step.spec.urn == "beam:transform:pardo:v1":
        fn = pickler.loads(proto.ParDoPayload.FromString(step.spec.payload).do_fn.payload)[0]
        fn.setup()
        fn.teardown()
        print(step.unique_name, type(fn).__name__)
"""


class TestOnAWorker:
    """In an environment with the wheel and without this source, as on a worker."""

    def run(self, python: Path, pipeline: bytes, folder: Path, session: bytes | None = None) -> dict[str, str]:
        """Class of each DoFn that was set up and torn down there, by the name of its step."""
        (folder / "pipeline.pb").write_bytes(pipeline)
        arguments = ["pipeline.pb"]
        if session is not None:
            (folder / "session").write_bytes(session)
            arguments.append("session")
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [str(python), "-c", ON_A_WORKER, *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LAUNCH_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())

    @pytest.mark.parametrize(
        ("argv", "ours"),
        [
            pytest.param(
                TOPIC_JOB,
                {"DeadLetterToMessage": "CallableWrapperDoFn", "WriteLargeLetters": "WriteLetters"},
                id="topic",
            ),
            pytest.param(FOLDER_JOB, {"WriteDeadLetters": "WriteLetters"}, id="folder"),
            pytest.param(
                FILES_JOB,
                {"Read/ParDo(ReadRecords)": "ReadRecords", "DeadLetterToJson": "CallableWrapperDoFn"},
                id="files",
            ),
        ],
    )
    def test_every_step_is_unpickled_and_set_up(
        self, launch: Launch, worker: Path, tmp_path: Path, argv: tuple[str, ...], ours: dict[str, str]
    ) -> None:
        """Each DoFn of the job, with the pickled main module loaded first; the merge step opens its table."""
        launched = launch(*argv)
        steps = self.run(
            worker,
            launched.pipeline.SerializeToString(),
            tmp_path,
            launched.service.staged("pickled_main_session"),
        )
        pardos = [
            one.unique_name
            for one in launched.pipeline.components.transforms.values()
            if one.spec.urn == "beam:transform:pardo:v1"
        ]
        assert sorted(steps) == sorted(pardos)
        assert ours | {MERGE_STEP: "MergeDoFn"} == {
            name: kind for name, kind in steps.items() if name in ours or kind == "MergeDoFn"
        }

    def test_a_store_in_memory(self, worker: Path, tmp_path: Path) -> None:
        """The merge step also opens a store in memory, of a pipeline made without a command line."""
        pipeline = beam.Pipeline()
        merge = MergeOptions(key="page", event_id="id", monoid="count", store="memory://worker")
        pubsub.build(pipeline, SUBSCRIPTION, merge, dead_letters="gs://my-bucket/dead")
        steps = self.run(worker, pipeline.to_runner_api().SerializeToString(), tmp_path)
        assert steps[MERGE_STEP] == "MergeDoFn"
        assert steps["WriteDeadLetters"] == "WriteLetters"

    def test_the_table_is_really_opened(self, launch: Launch, worker: Path, tmp_path: Path) -> None:
        """Without the table, the merge step cannot be set up."""
        pipeline = launch(*FOLDER_JOB).pipeline.SerializeToString()
        with bigtable() as empty, pytest.MonkeyPatch.context() as patch:
            patch.setenv("BIGTABLE_EMULATOR_HOST", empty)
            with pytest.raises(AssertionError, match="make the table with: murmur create-table"):
                self.run(worker, pipeline, tmp_path)

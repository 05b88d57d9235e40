"""Checks of the pipelines before a launch on Dataflow; its clients need not be installed for these."""

from __future__ import annotations

import sys

import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from murmur_beam.errors import ConfigurationError
from murmur_beam.programs import pubsub
from murmur_beam.runs.beam_runs import check_dataflow, on_dataflow, only_built

APICLIENT = "apache_beam.runners.dataflow.internal.apiclient"
LOCAL = [("--store", "sqlite:///views.db"), ("--dead_letters", "dead")]
REMOTE = [("--store", "bigtable://p/i/t"), ("--dead_letters", "gs://bucket/dead"), ("--input", None)]


@pytest.fixture
def _clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if Dataflow's clients were installed."""
    monkeypatch.setitem(sys.modules, APICLIENT, sys)


@pytest.mark.parametrize(
    ("runner", "expected"),
    [
        ("DataflowRunner", True),
        ("dataflowrunner", True),
        ("apache_beam.runners.dataflow.dataflow_runner.DataflowRunner", True),
        ("FlinkRunner", False),
        ("DirectRunner", False),
    ],
)
def test_dataflow_is_recognised_by_each_of_its_names(runner: str, expected: bool) -> None:
    """Beam accepts the name of a runner in any case, and that of its class."""
    assert on_dataflow(PipelineOptions([f"--runner={runner}"])) is expected


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--runner=DataflowRunner"], False),
        (["--runner=DataflowRunner", "--dry_run=true"], True),
        (["--runner=DataflowRunner", "--template_location=gs://b/t"], True),
        (["--runner=DirectRunner", "--dry_run=true"], False),
    ],
)
def test_a_job_that_is_only_built_is_recognised(flags: list[str], expected: bool) -> None:
    """Only Dataflow has dry runs and templates."""
    assert only_built(PipelineOptions(flags)) is expected


@pytest.mark.parametrize("runner", ["FlinkRunner", "DirectRunner", "PortableRunner"])
def test_other_runners_may_use_this_machine(runner: str) -> None:
    """Local files and caches are accepted where the workers run here."""
    check_dataflow(PipelineOptions([f"--runner={runner}"]), LOCAL, "memory://cache")


@pytest.mark.usefixtures("_clients")
@pytest.mark.parametrize(
    "package",
    ["--setup_file=./setup.py", "--extra_package=x.whl", "--sdk_container_image=gcr.io/p/i", "--extra_packages=x.whl"],
)
def test_the_library_may_reach_the_workers_in_any_way(package: str) -> None:
    """A source package, a wheel or an image."""
    options = PipelineOptions(["--runner=DataflowRunner", package])
    check_dataflow(options, REMOTE, None)
    with pytest.raises(ConfigurationError, match=r"^--store: sqlite:///views\.db is on one machine"):
        check_dataflow(options, LOCAL, None)


def test_missing_clients_are_reported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One line that says what to install, instead of a traceback from Beam."""
    monkeypatch.setitem(sys.modules, APICLIENT, None)
    code = pubsub.main(
        [
            "--runner=DataflowRunner",
            "--subscription=projects/p/subscriptions/s",
            "--dead_letters=gs://b/d",
            "--key=page",
        ]
    )
    err = capsys.readouterr().err
    assert (code, len(err.splitlines())) == (2, 1)
    assert err.startswith("pubsub: error: Dataflow's clients are not installed (")
    assert err.endswith("run: pip install 'murmur-beam[dataflow]'\n")

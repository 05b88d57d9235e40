"""``murmur create-table`` and ``murmur check``: output, exit codes and messages.

`test_table_create` and `test_table_check` test what they do.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from murmur_beam.cli import main as cli
from murmur_beam.model import Key
from murmur_beam.state import spec_from_uri
from murmur_beam.state.bigtable import encode_row_key, wire
from tests.support import emulators
from tests.support.commands import Command

_names = itertools.count()


@pytest.fixture
def murmur(bigtable_host: str, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the commands on a table of this test, which does not exist yet."""
    table = f"cli-{os.getpid()}-{next(_names)}"
    return Command(f"bigtable://{emulators.PROJECT}/{emulators.INSTANCE}/{table}", capsys)


PURPOSE = ("--monoid", "count", "--window", "daily", "--retention", "90d")


class TestCreateTable:
    def test_it_reports_each_change(self, murmur: Command) -> None:
        """One aligned line for each change; the second time nothing changes."""
        did = f"""\
{murmur.uri}: done:
  create  table           for monoid 'count' and buckets of 1d
  add     family agg      sums of 64-bit integers; garbage collection takes cells older than 91d 1h
  add     family dedup    cells; garbage collection takes cells older than 91d 1h or beyond 1 version
  add     family state    cells; garbage collection takes cells older than 91d 1h or beyond 1 version
  add     family meta     cells; garbage collection takes cells beyond 1 version
  add     family pending  cells; garbage collection takes cells older than 91d 1h
  record  purpose         monoid 'count' and buckets of 1d; a bucket is kept for 91d 1h from its start, an event \
is known for 91d 1h; layout 2, written by commits
"""
        assert murmur("create-table", *PURPOSE) == (0, did, "")
        assert murmur("create-table", *PURPOSE) == (0, f"{murmur.uri}: nothing to do\n", "")

    def test_a_dry_run_does_nothing(self, murmur: Command) -> None:
        """It prints the same, as changes that would be made."""
        dry = murmur("create-table", *PURPOSE, "--dry_run")
        assert murmur("check").out.startswith(
            f"{murmur.uri}: not as it should be\n  table        wrong        is missing"
        )
        assert (dry.code, dry.err) == (0, "")
        assert dry.out.replace("would be done", "done") == murmur("create-table", *PURPOSE).out

    def test_changes_that_delete_data_need_yes(self, murmur: Command) -> None:
        """An error names the option; a dry run shows where."""
        murmur("create-table", *PURPOSE)
        shorter = (*PURPOSE[:-1], "30d")
        refused = murmur("create-table", *shorter)
        assert (refused.code, refused.out) == (2, "")
        assert refused.err.startswith("murmur: error: --yes: is required, since garbage collection will take")
        assert refused.err.count("\n") == 1
        assert murmur("create-table", *shorter, "--dry_run").out.count("deletes data, so it needs --yes") == 4
        assert "needs --yes" not in murmur("create-table", *shorter, "--dry_run", "--yes").out
        assert murmur("create-table", *shorter, "--yes").code == 0
        assert murmur("create-table", *shorter).out.endswith("nothing to do\n")

    def test_the_way_of_writing(self, murmur: Command) -> None:
        """It is printed with the purpose, by `check` as well, and each change of it in a line of its own."""
        made = murmur("create-table", *PURPOSE, "--write", "append")
        assert made.out.endswith("layout 2, written by appending\n")
        assert murmur("create-table", *PURPOSE).out == f"{murmur.uri}: nothing to do\n"
        assert "layout 2, written by appending\n" in murmur("check").out
        assert murmur("check", "--write", "commit").out.endswith("--retention 90d --write commit\n")
        assert (
            murmur("create-table", *PURPOSE, "--write", "commit", "--dry_run").out
            == f"""\
{murmur.uri}: would be done:
  change  way of writing  by commits, instead of by appending; running pipelines go on as before until they are \
restarted; both ways may be mixed, since readers combine them
  record  purpose         monoid 'count' and buckets of 1d; a bucket is kept for 91d 1h from its start, an event \
is known for 91d 1h; layout 2, written by commits
"""
        )

    def test_a_monoid_that_depends_on_the_order(
        self, murmur: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its events arrive in any order, and the command says so."""
        (tmp_path / "own_text.py").write_text(
            "from murmur_beam.monoids import Custom\nTEXT = Custom('text', '', str.__add__, commutative=False)\n"
        )
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
        for command in ("create-table", "check"):
            ran = murmur(command, "--monoid", "own_text:TEXT", "--write", "append")
            assert (ran.code, ran.out) == (2, "")
            assert ran.err.startswith("murmur: error: --write: append does not support monoid 'text', which")
        assert murmur("create-table", "--monoid", "own_text:TEXT", "--write", "commit").code == 0

    def test_json(self, murmur: Command) -> None:
        """The same content, for programs."""
        steps = murmur.json("create-table", "--dedup_retention", "7d", "--dry_run")
        assert (steps["store"], steps["dry_run"]) == (murmur.uri, True)
        assert steps["steps"][2] == {
            "action": "add",
            "subject": "family dedup",
            "text": "cells; garbage collection takes cells older than 7d or beyond 1 version",
            "deletes": False,
        }
        assert murmur.json("create-table", "--dedup_retention", "7d") == {**steps, "dry_run": False}
        assert murmur.json("create-table", "--dedup_retention", "7d")["steps"] == []

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            pytest.param(("--retention", "90d"), "--retention: needs a window", id="no-window"),
            pytest.param((*PURPOSE, "--dedup_retention", "7d"), "--dedup_retention: leave it out", id="both"),
            pytest.param(
                ("--dedup_retention", "7d", "--write", "append"), "--dedup_retention: leave it out", id="append"
            ),
            pytest.param(("--monoid", "product"), "--monoid: unknown monoid 'product'; choose ", id="monoid"),
        ],
    )
    def test_mistakes(self, murmur: Command, args: tuple[str, ...], message: str) -> None:
        """One line that names the option, exit code 2, and no table is made."""
        ran = murmur("create-table", *args)
        assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
        assert ran.err.startswith(f"murmur: error: {message}")
        assert murmur.json("check")["findings"][0]["text"] == "is missing"

    def test_a_user_s_monoid(self, murmur: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """By module and attribute, as in other commands; its name is recorded."""
        (tmp_path / "own_gcd.py").write_text(
            "import math\nfrom murmur_beam.monoids import Custom\nGCD = Custom('gcd', 0, math.gcd, idempotent=True)\n"
        )
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
        assert "for monoid 'gcd' and no window" in murmur("create-table", "--monoid", "own_gcd:GCD").out
        assert murmur("check", "--monoid", "own_gcd:GCD").code == 0


class TestCheck:
    def test_a_correct_table(self, murmur: Command) -> None:
        """All that was checked, and exit code 0."""
        murmur("create-table", *PURPOSE)
        fine = f"""\
{murmur.uri}: as it should be
  table           ok
  purpose         ok           monoid 'count' and buckets of 1d; a bucket is kept for 91d 1h from its start, an event \
is known for 91d 1h; layout 2, written by commits
  family agg      ok           garbage collection takes cells older than 91d 1h
  family dedup    ok           garbage collection takes cells older than 91d 1h or beyond 1 version
  family state    ok           garbage collection takes cells older than 91d 1h or beyond 1 version
  family meta     ok           garbage collection takes cells beyond 1 version
  family pending  ok           garbage collection takes cells older than 91d 1h
  writing         ok
  rows            ok           none
  app profile     not checked  an emulator has none
"""
        assert murmur("check") == (0, fine, "")
        assert murmur("check", *PURPOSE) == (0, fine, "")

    def test_its_advice_mends_the_table(self, murmur: Command) -> None:
        """Faults come first, then one command, and exit code 1."""
        murmur("create-table", *PURPOSE)
        ran = murmur("check", "--retention", "120d")
        assert ran.code == 1
        lines = ran.out.splitlines()
        assert lines[0] == f"{murmur.uri}: not as it should be"
        assert [line.split("  ")[1] for line in lines[1:5]] == ["purpose", "family agg", "family dedup", "family state"]
        assert lines[-1] == f"run: murmur create-table {murmur.uri} --monoid count --window 1d --retention 120d"
        assert murmur(*lines[-1].removeprefix("run: murmur ").replace(f" {murmur.uri}", "").split()).code == 0
        assert murmur("check", "--retention", "120d").code == 0

    def test_pending_events_are_not_a_fault(self, murmur: Command) -> None:
        """Where the table is no longer appended to, the command says how to fold them; exit code 0."""
        murmur("create-table")
        where: Any = spec_from_uri(murmur.uri)
        with closing(where.connect()) as connection:
            cell = wire.put(wire.PENDING, bytes(24), 0, b"x")
            request = wire.bulk(connection, [(encode_row_key(Key("a")), [cell])])
            assert connection.run(connection.mutate(request, 1)) == {}
        ran = murmur("check")
        assert ran.code == 0
        assert ran.out.startswith(f"{murmur.uri}: as it should be\n")
        assert "  pending         warning      1 cells are not folded yet" in ran.out
        assert ran.out.endswith(f"\nrun: murmur fold {murmur.uri}\n")
        murmur("create-table", "--write", "append")
        assert "  pending         ok           1 cells are not folded yet" in murmur("check").out
        assert "run: " not in murmur("check").out

    def test_json(self, murmur: Command) -> None:
        """The same for programs, with the same exit code."""
        missing = murmur("check", "--json")
        assert missing.code == 1
        assert json.loads(missing.out) == {
            "store": murmur.uri,
            "ok": False,
            "findings": [
                {
                    "subject": "table",
                    "status": "wrong",
                    "text": "is missing",
                    "remedy": f"murmur create-table {murmur.uri} --monoid MONOID [--window WINDOW] ...",
                },
                {"subject": "app profile", "status": "not checked", "text": "an emulator has none", "remedy": ""},
            ],
        }
        murmur("create-table")
        assert murmur("check", "--json").code == 0
        assert murmur.json("check")["ok"] is True

    def test_a_service_that_does_not_answer(self, murmur: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        """One line, and exit code 2."""
        monkeypatch.setenv("BIGTABLE_EMULATOR_HOST", "127.0.0.1:1")
        for command in ("check", "create-table"):
            ran = murmur(command)
            assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
            assert ran.err.startswith(f"murmur: error: {murmur.uri}: ")

    def test_no_credentials(self, murmur: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """One line, and exit code 2."""
        monkeypatch.delenv("BIGTABLE_EMULATOR_HOST")
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
        for command in ("check", "create-table"):
            ran = murmur(command)
            assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
            assert "none.json was not found" in ran.err


class TestOtherStores:
    @pytest.mark.parametrize("uri", ["sqlite:///counts.db", "memory://counts"])
    def test_they_need_no_table(
        self, uri: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The commands say so in one line, and make nothing."""
        monkeypatch.chdir(tmp_path)
        for command in ("create-table", "check"):
            assert cli.main([command, uri]) == 0
            out, err = capsys.readouterr()
            assert (out, err) == (f"{uri}: needs no table; the first write creates everything\n", "")
        assert cli.main(["check", uri, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["ok"] is True
        assert [*tmp_path.iterdir()] == []

    @pytest.mark.parametrize(
        ("uri", "code", "message"),
        [
            ("sqlite:///counts.db", 0, ""),
            ("bigtable://p/i/t", 2, "murmur: error: URI: bigtable:// needs a package that is not installed"),
        ],
        ids=["sqlite", "bigtable"],
    )
    def test_without_google_s_packages(self, uri: str, code: int, message: str, tmp_path: Path) -> None:
        """Other stores do not need them; Bigtable names the extra that installs them."""
        blocked = (
            "import sys\n"
            "class No:\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            "        if name.split('.')[0] in ('google', 'grpc'):\n"
            "            raise ModuleNotFoundError(f'No module named {name!r}')\n"
            "sys.meta_path.insert(0, No())\n"
            "sys.modules.pop('google', None)\n"
            "from murmur_beam.cli.main import main\n"
            f"raise SystemExit(main(['check', {uri!r}]))\n"
        )
        environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
        ran = subprocess.run(
            [sys.executable, "-c", blocked], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert ran.returncode == code
        assert ran.stderr.startswith(message)
        assert (ran.stderr.count("\n"), "murmur-beam[gcp]" in ran.stderr) == ((1, True) if code else (0, False))


@pytest.mark.parametrize("command", ["create-table", "check"])
def test_help_explains_exit_codes_and_defaults(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With both commands; the list of commands names them."""
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "1  the table is not as it should be" in text
    assert " ".join(text.split()).count("default: ") >= 5
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert f"\n    {command}" in capsys.readouterr().out

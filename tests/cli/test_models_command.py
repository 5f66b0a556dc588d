"""`tunesmith models` and `tunesmith feedback` as a user types them: tables, JSON, exit codes, streams."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from finished_runs import answered, make_run, write_data
from tunesmith.cli.main import main
from tunesmith.cli.models import ago, gate_lines
from tunesmith.core.events import silent
from tunesmith.core.home import Home
from tunesmith.core.store import FeedbackRow, RequestRow, Store
from tunesmith.steps.gates import Gate
from tunesmith.steps.models import register

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Two registered versions: 30 and 20 of 40 held-out rows answered rightly."""
    data = tmp_path / "data"
    data.mkdir()
    write_data(data)
    home = Home(tmp_path / "home")
    for seed, num_right in enumerate((30, 20), 1):
        register(home, make_run(home, data, answered(num_right), seed=seed).path, "manual", emit=silent)
    return home


@pytest.fixture
def tunesmith(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command in the home; gives exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["--home", str(tmp_path / "home"), *words])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_the_list_shows_versions_newest_first(home: Home, tunesmith: Run) -> None:
    code, out, _ = tunesmith("models", "list")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == ["name", "version", "alias", "made", "method", "exact", "match", "served", "size"]
    assert lines[1].split()[:2] == ["manual", "2"] and "0.50 [0.3" in lines[1]
    assert lines[2].split()[:2] == ["manual", "1"] and "0.75 [0.6" in lines[2]
    assert all(len(line) <= 100 for line in lines)


def test_a_narrow_terminal_keeps_what_matters(home: Home, tunesmith: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "62")
    out = tunesmith("models", "list")[1]
    assert all(len(line) <= 62 for line in out.splitlines())
    assert "version" in out and "exact match" in out and "size" not in out


def test_an_empty_registry_is_no_error_and_leaves_no_trace(tmp_path: Path, tunesmith: Run) -> None:
    code, out, err = tunesmith("models", "list")
    assert (code, out) == (0, "") and "nothing is registered yet" in err
    assert tunesmith("models", "list", "--json")[1] == '{"models": []}\n'
    assert not (tmp_path / "home").exists()


def test_promoting_shows_every_gate_and_says_what_moved(home: Home, tunesmith: Run) -> None:
    code, out, err = tunesmith("models", "promote", "manual:1")
    assert (code, out) == (0, "manual@champion: none → 1\n")
    for word in ("✓ files verified", "✓ answers as trained", "✓ exact match", "✓ leak check", "✓ lineage"):
        assert word in err
    assert "champion" in tunesmith("models", "list")[1]


def test_a_failed_gate_is_exit_code_1_with_the_numbers(home: Home, tunesmith: Run) -> None:
    tunesmith("models", "promote", "manual:1")
    code, out, err = tunesmith("models", "promote", "manual:2")
    assert (code, out) == (1, "")
    assert "✗ exact match" in err and "0.50 against 0.75" in err and "difference −0.25 [" in err
    assert "manual:2 was not promoted: " in err and "champion is still 1" in err and "[gate.failed]" in err
    code, out, _ = tunesmith("models", "promote", "manual:2", "--json")
    error = json.loads(out)["error"]
    assert code == 1 and error["code"] == "gate.failed"
    assert next(gate["name"] for gate in error["gates"] if not gate["passed"]) == "exact match"


def test_rolling_back_says_from_where_to_where(home: Home, tunesmith: Run) -> None:
    tunesmith("models", "promote", "manual:2")
    tunesmith("models", "promote", "manual:1")
    code, out, _ = tunesmith("models", "rollback", "manual")
    assert code == 0 and out.startswith("manual@champion: 1 → 2, which served until ")
    code, _, err = tunesmith("models", "rollback", "manual")
    assert code == 1 and "there is no earlier version to go back to" in err


def test_show_tells_where_a_version_comes_from(home: Home, tunesmith: Run) -> None:
    tunesmith("models", "promote", "manual:1")
    out = tunesmith("models", "show", "manual")[1]
    for word in ("manual:1 · champion", "from run manual-1", "exact match", "40 held-out rows", "none → 1 · promote"):
        assert word in out
    shown = json.loads(tunesmith("models", "show", "manual:2", "--gates", "--json")[1])
    assert shown["reference"] == "manual:2" and len(shown["gates"]) == 8
    code, _, err = tunesmith("models", "show", "manul")
    assert code == 1 and 'did you mean "manual"?' in err


def test_registering_prints_the_reference_alone(home: Home, tunesmith: Run) -> None:
    code, out, err = tunesmith("models", "register", str(home.runs / "manual-1"), "other", "--events", "jsonl")
    assert (code, out) == (0, "other:1\n")
    assert "tunesmith models promote other:1" in err
    assert json.loads(tunesmith("models", "register", "manual-1", "other", "--json")[1])["is_new"] is False


def test_feedback_is_listed_and_exported(home: Home, tunesmith: Run) -> None:
    talk = ({"role": "user", "content": "What does E07 mean?"},)
    with Store.open(home) as store:
        store.add_request(RequestRow(id="r1", model="manual", version=1, messages=talk, answers=("No idea.",)))
        store.give_feedback(FeedbackRow(request="r1", value=False, correction="The tank is empty.", rater="ann"))
    out = tunesmith("feedback", "list")[1]
    assert "manual:1" in out and "down" in out and "The tank is empty." in out
    code, out, err = tunesmith("feedback", "export", "manual", "--events", "jsonl")
    assert code == 0 and (Path(out.strip()) / "sft.jsonl").is_file()
    assert f"tunesmith retrain manual --data {out.strip()}/sft.jsonl" in err
    assert json.loads(tunesmith("feedback", "list", "--json")[1])["feedback"][0]["value"] is False


def test_gates_fold_under_themselves() -> None:
    gate = Gate("quality", False, "0.50 against 0.75   difference −0.25 [−0.40, −0.10]", "at least −0.02 (40 rows)")
    lines = gate_lines([gate], 60).splitlines()
    assert len(lines) > 1 and lines[1].startswith(" " * 11)
    assert gate_lines([], 60) == ""


def test_times_are_said_as_a_person_says_them() -> None:
    now = datetime.now(UTC)

    def at(**before: float) -> str:
        return ago((now - timedelta(**before)).strftime("%Y-%m-%dT%H:%M:%SZ"))

    assert at(seconds=5) == "just now"
    assert at(minutes=20) == "20 min ago"
    assert at(hours=3) == "3 h ago"
    assert at(days=3) == "3 days ago"
    assert ago("2020-01-31T00:00:00Z") == "2020-01-31"


def test_merge_writes_a_folder_and_says_what_it_measured(tmp_path: Path, tunesmith: Run) -> None:
    from tunesmith.core.plugins import build
    from tunesmith.models.load import load_base
    from tunesmith.models.tiny import write_tiny
    from tunesmith.recipe import ModelSettings

    base = ModelSettings(name=str(write_tiny(tmp_path / "base", "llama")))
    loaded = load_base(base, "causal", trains_base_weights=False, precision="fp32", seed=1)
    method = build("methods", "lora")
    method.save(method.attach(loaded.model), tmp_path / "adapter")
    code, out, err = tunesmith("models", "merge", str(tmp_path / "adapter"), "--to", str(tmp_path / "merged"), "--json")
    found = json.loads(out)
    assert code == 0, err
    assert found["difference"] <= 1e-5 and found["num_questions"] == 8 and found["probes"] == "none"
    assert (tmp_path / "merged" / "config.json").is_file()
    (tmp_path / "home" / "runs").mkdir(parents=True, exist_ok=True)
    (tmp_path / "merged").rename(tmp_path / "home" / "runs" / "plain")
    code, _, err = tunesmith("models", "merge", "plain", "--to", str(tmp_path / "again"))  # by its name among the runs
    assert code == 1 and "plain already" in err
    code, _, err = tunesmith("models", "merge", "plane", "--to", str(tmp_path / "again"))
    assert code == 1 and "there is no folder of this name" in err

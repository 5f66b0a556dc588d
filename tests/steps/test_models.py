"""Versions: registered once, promoted through gates that show their numbers, rolled back along the history."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from finished_runs import NUM_TEST_ROWS, answered, make_run, recipe_for, reseal, write_data
from tunesmith.core.errors import GateError, UserError
from tunesmith.core.events import Event, Finished, silent
from tunesmith.core.home import Home
from tunesmith.core.publish import verify
from tunesmith.core.run import RunFolder
from tunesmith.core.store import RequestRow, Store, Version
from tunesmith.steps.gates import Gate
from tunesmith.steps.models import Promotion, list_models, promote, register, rollback, show


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    write_data(folder)
    return folder


def add(home: Home, data: Path, num_right: int, **settings: object) -> Version:
    """A registered version that answers so many held-out rows rightly; each has weights of its own."""
    seed = 1 + len(list(home.runs.iterdir())) if home.runs.is_dir() else 1
    run = make_run(home, data, answered(num_right), **{"seed": seed, **settings})  # type: ignore[arg-type]
    return register(home, run.path, "manual", emit=silent)


def champion(home: Home) -> int:
    with Store.open(home) as store:
        return store.aliases("manual")["champion"]


def gates_of(result: Promotion | GateError) -> dict[str, Gate]:
    gates: Sequence[Gate] = result.gates if isinstance(result, GateError) else result.judgement.gates
    return {gate.name: gate for gate in gates}


def refused(home: Home, reference: str) -> GateError:
    with pytest.raises(GateError) as fault:
        promote(home, reference, emit=silent)
    return fault.value


# --- register ------------------------------------------------------------------------------------


def test_a_version_is_a_verified_copy_with_its_lineage(home: Home, data: Path) -> None:
    run = make_run(home, data, answered(30))
    version = register(home, run.path, "manual", emit=silent)
    assert (version.reference, version.is_new) == ("manual:1", True)
    assert sorted(p.name for p in version.folder.iterdir()) == sorted(
        ["data.json", "environment.json", "manifest.json", "model", "recipe.yaml", "report.json"]
    )
    verify(version.folder)
    verify(version.model)
    lineage = version.lineage
    assert lineage["run"] == run.name and lineage["seed"] == 1 and lineage["parent"] is None
    assert len(lineage["base"]["sha256"]) == len(lineage["data_sha256"]) == len(lineage["fingerprint"]) == 64
    assert lineage["recipe"]["method"]["name"] == "full"
    assert lineage["scores"][0]["metric"] == "exact_match" and lineage["scores"][0]["value"] == 0.75
    assert set(lineage["packages"]) >= {"torch", "transformers"}
    shutil.rmtree(run.path)
    verify(version.folder)


def test_the_same_run_again_is_the_same_version(home: Home, data: Path) -> None:
    run = make_run(home, data, answered(30))
    first = register(home, run.path, "manual", emit=silent)
    said: list[Event] = []
    again = register(home, run.path, "manual", emit=said.append)
    assert (again.number, again.is_new) == (first.number, False)
    finished = next(event for event in said if isinstance(event, Finished))
    assert finished.text == "the same model is registered already: manual:1"
    assert register(home, run.path, "other", emit=silent).is_new


def test_another_report_is_not_another_version(home: Home, data: Path) -> None:
    first = register(home, make_run(home, data, answered(30)).path, "manual", emit=silent)
    same_weights = register(home, make_run(home, data, answered(10), seconds=9.0).path, "manual", emit=silent)
    assert (same_weights.number, same_weights.is_new) == (first.number, False)


def test_the_name_is_the_recipes_where_left_out_and_runs_go_by_name(home: Home, data: Path) -> None:
    run = make_run(home, data, answered(30))
    assert register(home, run.name, emit=silent).reference == "manual:1"


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "a b", "x" * 65, "ü"])
def test_a_name_that_could_leave_its_folder_is_refused(home: Home, data: Path, name: str) -> None:
    run = make_run(home, data, answered(30), recipe=recipe_for(data, name="-bad"))
    with pytest.raises(UserError) as fault:
        register(home, run.path, name, emit=silent)
    assert fault.value.code == "bad_name"
    assert not home.registry.exists()


def test_only_a_finished_and_whole_run_is_registered(home: Home, data: Path) -> None:
    run = make_run(home, data, answered(30))
    run.set_state("stopped")
    with pytest.raises(UserError, match="the run is stopped") as fault:
        register(home, run.path, "manual", emit=silent)
    assert f"tunesmith train --resume {run.path}" in fault.value.remedy
    run.set_state("finished")
    weights = run.model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(UserError, match=r"model\.safetensors"):
        register(home, run.path, "manual", emit=silent)
    assert list_models(home) == ()


def test_a_pickle_among_the_weights_is_refused(home: Home, data: Path) -> None:
    run = make_run(home, data, answered(30))
    (run.model / "extra.bin").write_bytes(b"\x80\x04.")
    reseal(run.model)
    with pytest.raises(UserError, match="is a pickle"):
        register(home, run.path, "manual", emit=silent)


def test_what_a_killed_registration_left_is_removed(home: Home, data: Path) -> None:
    left = home.versions("manual") / ".1.tmp-abc"
    left.mkdir(parents=True)
    (left / "half").write_text("half")
    version = add(home, data, 30)
    assert version.number == 1 and not left.exists()


def test_a_number_with_files_is_not_given_again_even_if_the_database_is_lost(home: Home, data: Path) -> None:
    add(home, data, 30)
    home.database.unlink()
    for file in home.registry.glob("tunesmith.db-*"):
        file.unlink()
    assert add(home, data, 31).number == 2


REGISTER = """
import sys
from pathlib import Path
from tunesmith.core.events import silent
from tunesmith.core.home import Home
from tunesmith.steps.register import register
print(register(Home(Path(sys.argv[1])), sys.argv[2], "manual", emit=silent).number)
"""


def test_two_processes_at_once_get_two_numbers_and_one_for_the_same_run(home: Home, data: Path) -> None:
    runs = [make_run(home, data, answered(20 + seed), seed=seed) for seed in (1, 2)]
    wanted = [runs[0], runs[1], runs[0]]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", REGISTER, str(home.path), str(run.path)], stdout=subprocess.PIPE, text=True
        )
        for run in wanted
    ]
    numbers = [int(process.communicate(timeout=120)[0]) for process in processes]
    assert numbers[0] == numbers[2] and {numbers[0], numbers[1]} == {1, 2}


# --- promote -------------------------------------------------------------------------------------


def test_the_first_version_needs_no_champion_but_every_other_gate(home: Home, data: Path) -> None:
    add(home, data, 30)
    promotion = promote(home, "manual", emit=silent)
    assert (promotion.previous, promotion.version.number, promotion.version.aliases) == (None, 1, ("champion",))
    gates = gates_of(promotion)
    assert list(gates) == [
        "files verified",
        "answers as trained",
        "exact match",
        "slices",
        "leak check",
        "lineage",
        "latency",
        "memory",
    ]
    assert all(gate.passed and gate.text and gate.threshold for gate in gates.values())
    assert "no champion yet" in gates["exact match"].text
    assert gates["answers as trained"].text == "loads alone; 3 of 3 probe answers as trained"


def test_a_better_version_is_promoted_with_its_numbers(home: Home, data: Path) -> None:
    add(home, data, 20)
    add(home, data, 30)
    promote(home, "manual:1", emit=silent)
    promotion = promote(home, "manual:2", emit=silent)
    quality = gates_of(promotion)["exact match"]
    assert quality.text.startswith("0.75 against 0.50   difference +0.25 [+0.1")
    assert quality.threshold == "at least −0.02, interval above −0.10 (40 rows)"
    assert quality.values["difference"]["value"] == 0.25
    assert champion(home) == 2
    with Store.open(home) as store:
        recorded = store.history("manual")[-1].gates
    assert [gate["name"] for gate in recorded] == [gate.name for gate in promotion.judgement.gates]


def test_a_worse_version_is_refused_and_the_champion_stays(home: Home, data: Path) -> None:
    add(home, data, 30)
    add(home, data, 28)
    promote(home, "manual:1", emit=silent)
    fault = refused(home, "manual:2")
    failed = [gate.name for gate in fault.gates if not gate.passed]
    assert failed == ["exact match"]
    assert fault.message == "manual:2 was not promoted: 1 of 8 gates failed, first exact match; champion is still 1."
    assert fault.remedy == "Look at it: tunesmith models show manual:2 --gates"
    assert champion(home) == 1
    assert fault.to_dict()["gates"][2]["values"]["champion"] == 0.75


def test_a_version_with_the_same_result_on_every_row_is_not_worse(home: Home, data: Path) -> None:
    add(home, data, 30)
    add(home, data, 30)
    promote(home, "manual:1", emit=silent)
    assert "the same on every row" in gates_of(promote(home, "manual:2", emit=silent))["exact match"].text


def test_a_wider_margin_lets_a_little_worse_pass(home: Home, data: Path) -> None:
    add(home, data, 30)
    add(home, data, 28)
    promote(home, "manual:1", emit=silent)
    assert promote(home, "manual:2", margin=0.06, emit=silent).version.number == 2


def test_a_slice_that_got_worse_is_named(home: Home, data: Path) -> None:
    is_b = [place % 2 == 1 for place in range(NUM_TEST_ROWS)]
    old = make_run(home, data, is_b, seed=7)
    new = make_run(home, data, [not b or place < 10 for place, b in enumerate(is_b)], seed=8)
    register(home, old.path, "manual", emit=silent)
    register(home, new.path, "manual", emit=silent)
    promote(home, "manual:1", emit=silent)
    with pytest.raises(GateError) as fault:
        promote(home, "manual:2", margin=0.1, emit=silent)
    assert [gate.name for gate in fault.value.gates if not gate.passed] == ['machine "B"']
    gate = next(gate for gate in fault.value.gates if not gate.passed)
    assert gate.text.startswith("0.25 against 1.0   difference −0.75")
    assert gate.threshold == "at least −0.05 (20 rows)"


def test_damaged_files_fail_their_gate(home: Home, data: Path) -> None:
    version = add(home, data, 30)
    (version.folder / "report.json").write_text("{}")
    gates = gates_of(refused(home, "manual:1"))
    assert not gates["files verified"].passed and "report.json" in gates["files verified"].text
    assert not gates["quality"].passed


def test_files_exchanged_together_with_their_manifest_fail_too(home: Home, data: Path) -> None:
    version = add(home, data, 30)
    other = add(home, data, 31)
    shutil.rmtree(version.model)
    shutil.copytree(other.model, version.model)
    reseal(version.folder)
    verify(version.folder)
    gate = gates_of(refused(home, "manual:1"))["files verified"]
    assert "its files are not those that were registered" in gate.text


def test_a_model_that_answers_otherwise_than_trained_is_refused(home: Home, data: Path) -> None:
    version = add(home, data, 30)
    probes = version.model / "probes.json"
    other = add(home, data, 31).model / "probes.json"
    shutil.copyfile(other, probes)
    gate = gates_of(refused(home, "manual:1"))["answers as trained"]
    assert not gate.passed and gate.values.get("stage") in ("logits", "text")


def test_a_missing_probe_file_is_a_failure_not_a_skip(home: Home, data: Path) -> None:
    version = add(home, data, 30)
    (version.model / "probes.json").unlink()
    gate = gates_of(refused(home, "manual:1"))["answers as trained"]
    assert gate.text.startswith("could not run: manual:1: there are no probe answers")


def test_a_leak_is_a_failure(home: Home, data: Path) -> None:
    held_out = json.loads((data / "test.jsonl").read_text(encoding="utf-8").splitlines()[0])
    hidden = {"question": held_out["question"].upper(), "answer": held_out["answer"]}
    with (data / "train.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(hidden) + "\n")
    recipe = recipe_for(data, data={**recipe_for(data).model_dump(mode="json")["data"], "split": {"validation": 0}})
    register(home, make_run(home, data, answered(30), recipe=recipe).path, "manual", emit=silent)
    gate = gates_of(refused(home, "manual:1"))["leak check"]
    assert gate.text == "1 held-out rows among the training rows" and gate.threshold == "0"


def test_bigger_than_the_budget_is_refused_with_the_numbers(home: Home, data: Path) -> None:
    add(home, data, 30, peak_bytes=10**9)
    add(home, data, 30, peak_bytes=3 * 10**9)
    add(home, data, 30, peak_bytes=2 * 10**9)
    promote(home, "manual:1", emit=silent)
    gate = gates_of(refused(home, "manual:2"))["memory"]
    assert (gate.passed, gate.text, gate.threshold) == (False, "2.8 GiB against 0.9 GiB", "at most 2.1 GiB")
    assert promote(home, "manual:3", emit=silent).version.number == 3


def test_a_model_that_is_really_slower_is_refused(home: Home, data: Path) -> None:
    add(home, data, 30, seconds=0.1)
    add(home, data, 30, seconds=9.0, num_layers=40)
    promote(home, "manual:1", emit=silent)
    gate = gates_of(refused(home, "manual:2"))["latency"]
    assert not gate.passed and gate.text.startswith("9 s against 0.1 s when trained; side by side now ")


def test_a_clock_that_was_wrong_for_a_busy_machine_is_asked_again(home: Home, data: Path) -> None:
    add(home, data, 30, seconds=0.1)
    add(home, data, 30, seconds=9.0)
    promote(home, "manual:1", emit=silent)
    gate = gates_of(promote(home, "manual:2", emit=silent))["latency"]
    assert gate.passed and "side by side now" in gate.text


def test_a_version_that_was_not_timed_cannot_be_compared_with_one_that_was(home: Home, data: Path) -> None:
    add(home, data, 30)
    add(home, data, 30, seconds=None)
    promote(home, "manual:1", emit=silent)
    gate = gates_of(refused(home, "manual:2"))["latency"]
    assert gate.text == "could not run: only one of the two has its latency recorded. [not_measured]"


def test_other_rows_are_answered_anew_by_the_champion(home: Home, data: Path) -> None:
    """The champion is a random model that answers nothing right, whatever its report of other rows says."""
    add(home, data, NUM_TEST_ROWS)
    promote(home, "manual:1", emit=silent)
    rows = (data / "test.jsonl").read_text(encoding="utf-8").splitlines()[:20]
    (data / "fewer.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    recipe = recipe_for(data, data={"source": str(data / "train.jsonl"), "test": str(data / "fewer.jsonl")})
    register(home, make_run(home, data, answered(5, 20), recipe=recipe, seed=9).path, "manual", emit=silent)
    quality = gates_of(promote(home, "manual:2", emit=silent))["exact match"]
    assert quality.text.startswith("0.25 against 0.00") and "anew" in quality.text
    assert quality.values["difference"]["n"] == 20


def test_other_rows_that_are_gone_fail_the_gate(home: Home, data: Path) -> None:
    add(home, data, 20)
    promote(home, "manual:1", emit=silent)
    rows = (data / "test.jsonl").read_text(encoding="utf-8").splitlines()[:20]
    (data / "fewer.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    recipe = recipe_for(data, data={"source": str(data / "train.jsonl"), "test": str(data / "fewer.jsonl")})
    register(home, make_run(home, data, answered(20, 20), recipe=recipe, seed=9).path, "manual", emit=silent)
    (data / "fewer.jsonl").unlink()
    gates = gates_of(refused(home, "manual:2"))
    assert gates["quality"].text.startswith("could not run: ") and "fewer.jsonl" in gates["quality"].text


def test_promoting_the_champion_again_moves_nothing(home: Home, data: Path) -> None:
    add(home, data, 30)
    promote(home, "manual:1", emit=silent)
    again = promote(home, "manual:1", emit=silent)
    assert again.move is None and again.to_dict()["is_moved"] is False
    with Store.open(home) as store:
        assert len(store.history("manual")) == 1


def test_another_alias_is_for_trying_and_compares_nothing(home: Home, data: Path) -> None:
    add(home, data, 30)
    add(home, data, 10)
    promote(home, "manual:1", emit=silent)
    promotion = promote(home, "manual:2", alias="candidate", emit=silent)
    assert promotion.version.aliases == ("candidate",) and champion(home) == 1
    with pytest.raises(UserError) as fault:
        promote(home, "manual:2", alias="not/ok", emit=silent)
    assert fault.value.code == "bad_name"


def test_an_alias_that_moved_while_the_gates_ran_is_not_overwritten(home: Home, data: Path) -> None:
    for num_right in (10, 20, 30):
        add(home, data, num_right)
    promote(home, "manual:1", emit=silent)
    moved = False

    def meanwhile(_event: Event) -> None:
        nonlocal moved
        if not moved:
            moved = True
            with Store.open(home) as store:
                store.move_alias("manual", "champion", 3, expected=1)

    with pytest.raises(UserError) as fault:
        promote(home, "manual:2", emit=meanwhile)
    assert fault.value.code == "alias_moved" and champion(home) == 3


# --- roll back, list, show -----------------------------------------------------------------------


def test_rolling_back_goes_step_by_step_along_the_history(home: Home, data: Path) -> None:
    for num_right in (10, 20, 30):
        version = add(home, data, num_right)
        promote(home, version.reference, emit=silent)
    assert rollback(home, "manual", emit=silent).move.number == 2
    result = rollback(home, "manual", emit=silent)
    assert (result.move.previous, result.move.number, result.move.kind) == (2, 1, "rollback")
    assert result.served_until.endswith("Z")
    with pytest.raises(UserError, match="has been 1 from the start"):
        rollback(home, "manual", emit=silent)
    promote(home, "manual:3", emit=silent)
    assert rollback(home, "manual@champion", emit=silent).move.number == 1


def test_a_version_rolled_back_from_is_not_gone_back_to(home: Home, data: Path) -> None:
    for num_right in (10, 20, 30):
        add(home, data, num_right)
    promote(home, "manual:1", emit=silent)
    promote(home, "manual:2", emit=silent)
    rollback(home, "manual", emit=silent)
    promote(home, "manual:3", emit=silent)
    assert rollback(home, "manual", emit=silent).move.number == 1


def test_rolling_back_to_damaged_files_is_refused(home: Home, data: Path) -> None:
    for num_right in (10, 20):
        promote(home, add(home, data, num_right).reference, emit=silent)
    (home.versions("manual") / "1" / "data.json").write_text("{}")
    with pytest.raises(UserError, match=r"data\.json"):
        rollback(home, "manual", emit=silent)
    assert champion(home) == 2


def test_rolling_back_without_a_champion_says_what_to_do(home: Home, data: Path) -> None:
    add(home, data, 10)
    with pytest.raises(UserError) as fault:
        rollback(home, "manual", emit=silent)
    assert "was never set" in fault.value.message and "tunesmith models list manual" in fault.value.remedy
    with pytest.raises(UserError, match="needs a name, not a version"):
        rollback(home, "manual:1", emit=silent)
    with pytest.raises(UserError, match="there is no registered model"):
        rollback(home, "nobody", emit=silent)


def test_the_list_is_newest_first_with_size_and_traffic(home: Home, data: Path) -> None:
    assert list_models(home) == ()
    for num_right in (10, 20):
        add(home, data, num_right)
    with Store.open(home) as store:
        for number in range(3):
            store.add_request(RequestRow(id=f"r{number}", model="manual", version=2))
        store.add_request(RequestRow(id="old", model="manual", version=2, at="2020-01-01T00:00:00Z"))
    listed = list_models(home, "manual")
    assert [(one.version.number, one.requests_last_hour) for one in listed] == [(2, 3), (1, 0)]
    assert listed[0].num_bytes > 10_000
    assert listed[0].to_dict()["lineage"]["scores"][0]["value"] == 0.5
    with pytest.raises(UserError, match="there is no registered model"):
        list_models(home, "manuel")


def test_showing_the_gates_moves_nothing(home: Home, data: Path) -> None:
    add(home, data, 30)
    add(home, data, 10)
    promote(home, "manual:1", emit=silent)
    shown = show(home, "manual:2", emit=silent, with_gates=True)
    assert shown.judgement is not None and shown.judgement.failed[0].name == "exact match"
    assert champion(home) == 1
    assert [move["to"] for move in shown.to_dict()["history"]] == [1]
    assert show(home, "manual", emit=silent).judgement is None


def test_nothing_of_a_version_names_this_machines_paths_in_its_scores(home: Home, data: Path) -> None:
    version = add(home, data, 30)
    assert RunFolder.open(version.folder).read_json("environment.json")["packages"]
    assert str(home.path) not in json.dumps(version.to_dict()["lineage"]["scores"])

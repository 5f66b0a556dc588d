"""Searching for settings: proposals, early ends, faults, kills, and a best recipe that gives its score again."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tunesmith.core.errors import Interrupted, UserError
from tunesmith.core.events import Event, Metric, Progress, Started, silent
from tunesmith.core.publish import sha256
from tunesmith.core.run import RunFolder
from tunesmith.models.tiny import write_tiny
from tunesmith.recipe import read_recipe
from tunesmith.steps import search_trial
from tunesmith.steps.search import Search, resume, search
from tunesmith.steps.search_plan import SearchPlan
from tunesmith.steps.search_study import Study, make_pruner
from tunesmith.steps.search_trial import Result
from tunesmith.steps.search_workers import how_many

TRAIN = {"steps": 4, "tokens_per_step": 128, "micro_tokens": 128, "validations": 4, "patience": 0}
LR = {"low": 1e-4, "high": 1e-1, "log": True}
SPACE = {"train.lr": LR, "method.rank": {"low": 1, "high": 8}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    write_tiny(folder / "tiny", "llama")
    answers = ["the tank is empty", "press the button", "wait"]
    rows = [{"question": f"what does light {n} mean", "answer": answers[n % 3]} for n in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:4]).replace("light", "lamp"))
    return folder


def plan(place: Path, space: dict[str, Any], **sections: Any) -> SearchPlan:
    values = {
        "name": "small",
        "model": {"name": str(place / "tiny"), "precision": "fp32"},
        "data": {"source": str(place / "rows.jsonl"), "test": str(place / "test.jsonl"), "split": {"validation": 0.2}},
        "method": {"name": "lora", "rank": 2},
        "evaluate": ["exact_match"],
        "generate": {"max_new_tokens": 2},
        "train": {**TRAIN, **sections.pop("train", {})},
        "search": {"trials": 4, "pruner": "none", "train_best": False, **sections.pop("search", {}), "space": space},
        **sections,
    }
    return SearchPlan.make(values)


def run(made: SearchPlan, root: Path, jobs: int = 1) -> Search:
    return search(made, emit=silent, root=root, jobs=jobs)


@pytest.fixture(scope="module")
def straight(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Search:
    """A search that nobody stops."""
    return run(plan(place, SPACE), tmp_path_factory.mktemp("straight"))


def losses(found: Search) -> list[float]:
    return [trial["validation_loss"] for trial in found.report["trials"]]


def test_the_best_recipe_gives_its_score_again_and_only_it_sees_the_test_rows(place: Path, tmp_path: Path) -> None:
    space = {"train.lr": LR, "method": ["lora", "full"], "method.rank": [2, 4]}
    events: list[Event] = []
    made = plan(place, space, search={"train_best": True, "trials": 3})
    found = search(made, emit=events.append, root=tmp_path)
    report = found.report
    assert report["counts"] == {"complete": 3, "pruned": 0, "failed": 0}
    assert report["best"]["value"] == min(losses(found)) == report["best"]["validation_loss"]
    tested = report["best_run"]
    assert tested["is_reproduced"] and tested["validation_loss"] == report["best"]["value"]
    assert tested["held_out"] == {"name": "test", "num_rows": 4} and tested["scores"]["exact_match"]["n"] == 4
    for trial in report["trials"]:
        assert ("method.rank" in trial["params"]) == (trial["params"]["method"] == "lora")
    best = read_recipe(found.best)
    assert best.train.lr == report["best"]["params"]["train.lr"]
    assert best.search == type(best.search)(), "the best recipe searches nothing"
    rows = [event for event in events if isinstance(event, Metric) and event.step == "search"]
    assert [event.at for event in rows] == [1, 2, 3]
    assert [event.at for event in rows if event.is_best][-1] == report["best"]["trial"]
    assert isinstance(events[0], Started) and "searches" not in str(events[0].values["search"])


def test_everything_promised_is_on_disk_with_its_sum(straight: Search) -> None:
    found = straight
    files = found.report["files"]
    assert {"trials.jsonl", "trials.csv", "best.yaml", "search.html", "plots/history.png"} <= set(files)
    assert all(sha256(found.path / name) == expected for name, expected in files.items())
    lines = (found.path / "trials.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == found.report["trials"]
    rows = list(csv.DictReader((found.path / "trials.csv").open()))
    assert [float(row["value"]) for row in rows] == losses(found)
    assert [float(row["train.lr"]) for row in rows] == [t["params"]["train.lr"] for t in found.report["trials"]]
    assert Search.open(found.path).to_dict() == found.to_dict()
    assert not list(found.path.rglob("*.safetensors")), "trials leave no weights"


def test_the_same_search_again_is_the_same(straight: Search, place: Path, tmp_path: Path) -> None:
    again = run(plan(place, SPACE), tmp_path)
    assert [t["chosen"] for t in straight.report["trials"]] == [t["chosen"] for t in again.report["trials"]]
    assert losses(straight) == losses(again)


def proposed(made: SearchPlan, folder: Path) -> list[dict[str, Any]]:
    """What a search would try, if every trial gave the same."""
    folder.mkdir(exist_ok=True)
    study, found = Study(made, folder), []
    while (asked := study.next()) is not None:
        found.append(asked.chosen)
        study.tell(asked, Result("complete", value=1.0, validation_loss=1.0))
    return found


def test_random_proposals_lie_in_their_ranges_and_follow_the_seed(place: Path, tmp_path: Path) -> None:
    made = [plan(place, SPACE, search={"sampler": "random", "trials": 8}, seed=seed) for seed in (1, 1, 2)]
    first, again, other = (proposed(one, tmp_path / str(number)) for number, one in enumerate(made))
    assert all(1 <= chosen["method.rank"] <= 8 and 1e-4 <= chosen["train.lr"] <= 1e-1 for chosen in first)
    assert first == again != other


def test_tpe_learns_from_what_it_tried(place: Path, tmp_path: Path) -> None:
    """On a bowl with its bottom at 1e-2, the later half of TPE's proposals lies nearer to it than random ones do."""
    import math

    def mean_distance(sampler: str) -> float:
        folder = tmp_path / sampler
        folder.mkdir()
        made = plan(
            place, {"train.lr": {"low": 1e-6, "high": 1, "log": True}}, search={"sampler": sampler, "trials": 30}
        )
        study = Study(made, folder)
        distances = []
        while (asked := study.next()) is not None:
            distance = abs(math.log10(asked.chosen["train.lr"]) + 2)
            distances.append(distance)
            study.tell(asked, Result("complete", value=distance, validation_loss=distance))
        assert len(distances) == 30
        return sum(distances[15:]) / 15

    assert mean_distance("tpe") < 0.5 * mean_distance("random")


def test_a_grid_tries_every_combination_once(place: Path, tmp_path: Path) -> None:
    space = {"train.lr": [1e-3, 1e-2], "method": ["full", "lora"], "method.rank": [2, 4]}
    tried = proposed(plan(place, space, search={"sampler": "grid", "trials": 9}), tmp_path)
    full = [{"train.lr": lr, "method": "full"} for lr in (1e-3, 1e-2)]
    lora = [{"train.lr": lr, "method": "lora", "method.rank": rank} for lr in (1e-3, 1e-2) for rank in (2, 4)]
    assert len(tried) == 6, "no combination twice, though nine trials are allowed"
    assert all(one in tried for one in full + lora)


def test_the_median_ends_what_lies_behind_and_halving_lets_a_third_go_on(place: Path, tmp_path: Path) -> None:
    for pruner, expected in (("median", [4, 4, 4, 4, 2, 4]), ("halving", [4, 1, 1, 4, 1, 4])):
        folder = tmp_path / pruner
        folder.mkdir()
        study = Study(plan(place, {"train.lr": LR}, search={"pruner": pruner, "trials": 6}), folder)
        seen = []
        for loss in (5.0, 6.0, 7.0, 4.0, 9.0, 3.0):
            asked = study.next()
            assert asked is not None
            step = next((k for k in range(1, 5) if study.report(asked, k, loss)), 0)
            study.tell(asked, Result("pruned") if step else Result("complete", value=loss, validation_loss=loss))
            seen.append(step or 4)
        assert seen == expected, pruner


def test_a_trial_that_ends_early_trains_no_further(place: Path, tmp_path: Path) -> None:
    made = plan(place, {"train.lr": [1e-2, 1e-3]})
    rows_sha256 = search_trial.rows_of(made.recipe)[1]
    recipe = made.recipe_for({"train.lr": 1e-2}).model_dump(mode="json")
    task = search_trial.Task(0, recipe, tmp_path / "0001", "", rows_sha256)
    steps: list[int] = []
    result = search_trial.run_trial(
        task, lambda k, loss: k == 2, lambda event: steps.append(event.done) if isinstance(event, Progress) else None
    )
    assert (result.state, result.value, len(result.losses), max(steps)) == ("pruned", None, 2, 2)
    assert result.validation_loss == min(result.losses)


def test_a_metric_decides_by_its_own_direction_on_validation_rows(place: Path, tmp_path: Path) -> None:
    made = plan(place, {"train.lr": [1e-4, 5e-2]}, search={"metric": "rouge", "sampler": "grid"}, train={"steps": 12})
    found = run(made, tmp_path)
    values = [trial["value"] for trial in found.report["trials"]]
    assert found.report["higher_is_better"] and found.report["best"]["value"] == max(values)
    assert all(0 <= value <= 1 for value in values)


def test_a_trial_that_diverges_is_recorded_and_the_search_goes_on(place: Path, tmp_path: Path) -> None:
    train = {"max_bad_steps": 0, "max_grad_norm": 0, "steps": 8}
    made = plan(place, {"train.lr": [1e-2, 1e30], "method": ["full", "lora"]}, search={"sampler": "grid"}, train=train)
    found = run(made, tmp_path)
    failed = [trial for trial in found.report["trials"] if trial["state"] == "failed"]
    assert failed and all(trial["params"]["train.lr"] == 1e30 for trial in failed)
    assert all(trial["code"] in ("not_finite", "diverged") and trial["value"] is None for trial in failed)
    assert found.report["best"]["params"]["train.lr"] == 1e-2


def test_a_search_in_which_everything_fails_says_why(place: Path, tmp_path: Path) -> None:
    made = plan(
        place, {"train.lr": {"low": 1e29, "high": 1e30}}, train={"max_bad_steps": 0, "max_grad_norm": 0, "steps": 8}
    )
    with pytest.raises(UserError, match="no trial came to an end") as caught:
        run(made, tmp_path)
    assert caught.value.code in ("not_finite", "diverged")
    assert RunFolder(tmp_path / "small-1").state == "failed"


def test_out_of_memory_fails_the_trial_alone(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = search_trial._train

    def starved(task: search_trial.Task, *rest: Any) -> Result:
        if task.number == 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return real(task, *rest)

    monkeypatch.setattr(search_trial, "_train", starved)
    found = run(plan(place, {"train.lr": LR}, search={"trials": 3}), tmp_path)
    assert [trial["code"] for trial in found.report["trials"]] == ["", "out_of_memory", ""]


def test_rows_to_be_judged_by_must_be_there_and_fit_the_metric(place: Path, tmp_path: Path) -> None:
    data = {"source": str(place / "rows.jsonl"), "split": {"validation": 0.0}}
    with pytest.raises(UserError) as caught:
        run(plan(place, {"train.lr": LR}, data=data), tmp_path)
    assert caught.value.code == "no_validation"
    with pytest.raises(UserError) as caught:
        run(plan(place, {"train.lr": LR}, search={"metric": "accuracy"}), tmp_path)
    assert caught.value.code == "metric_unfit"
    assert not list(tmp_path.iterdir()), "nothing is left of a search that cannot begin"


def test_tasks_with_heads_of_their_own_have_no_one_score(place: Path, tmp_path: Path) -> None:
    sources = [{"path": str(place / "rows.jsonl"), "name": name, "objective": "sft"} for name in ("a", "b")]
    data = {"source": sources, "split": {"validation": 0.2}}
    with pytest.raises(UserError, match="task"):
        run(plan(place, {"train.lr": LR}, data=data), tmp_path)
    assert not list(tmp_path.iterdir())


def test_ctrl_c_leaves_a_search_that_goes_on_as_if_nothing_had_been(
    straight: Search, place: Path, tmp_path: Path
) -> None:
    made = plan(place, SPACE)

    def stop(event: Event) -> None:
        if isinstance(event, Progress) and event.label == "trial 3 of 4":
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        search(made, emit=stop, root=tmp_path / "stopped")
    folder = tmp_path / "stopped" / "small-1"
    assert caught.value.resume == f"tunesmith search --resume {folder}"
    assert "after 2 of 4 trials" in caught.value.message and (folder / "best.yaml").is_file()
    found = resume(folder, emit=silent)
    assert losses(found) == losses(straight)
    assert [t["chosen"] for t in found.report["trials"]] == [t["chosen"] for t in straight.report["trials"]]
    more = resume(folder, emit=silent, trials=5)
    assert len(more.report["trials"]) == 5 and losses(more)[:4] == losses(straight)


def test_kill_9_in_a_trial_repeats_it(straight: Search, place: Path, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(plan(place, SPACE).to_yaml())
    words = [sys.executable, "-m", "tunesmith", "search", "r.yaml", "--events", "jsonl", "--home", "home"]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if '"trial 3 of 4"' in line and '"progress"' in line:
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    folder = tmp_path / "home" / "searches" / "small-1"
    assert RunFolder(folder).state == "running", "it had no time to say anything"
    found = resume(folder, emit=silent)
    assert losses(found) == losses(straight)


def test_a_trial_that_keeps_killing_the_process_is_given_up(place: Path, tmp_path: Path) -> None:
    made = plan(place, {"train.lr": LR}, search={"trials": 1})
    for _ in range(3):
        asked = Study(made, tmp_path).next()
        assert asked is not None and asked.number == 0
    study = Study(made, tmp_path)
    assert study.next() is None
    (only,) = study.trials()
    assert (only["state"], only["code"]) == ("failed", "process_died")


def test_trials_in_several_processes_give_what_one_gives(place: Path, tmp_path: Path) -> None:
    made = plan(place, {"train.lr": [1e-3, 3e-3, 1e-2]}, search={"sampler": "grid", "trials": 3})
    alone, together = run(made, tmp_path / "one"), run(made, tmp_path / "two", jobs=2)
    assert losses(together) == losses(alone), "each worker has the one thread that this process has"


def test_a_worker_that_dies_costs_its_trial_only(place: Path, tmp_path: Path) -> None:
    made = plan(place, {"train.lr": LR}, search={"trials": 3}, train={"steps": 100, "validations": 2})
    killed: list[int] = []

    def kill_one(event: Event) -> None:
        if isinstance(event, Progress) and not killed:
            until = time.monotonic() + 60
            while time.monotonic() < until and not list(tmp_path.rglob("metrics.jsonl")):
                time.sleep(0.05)
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            workers = [c for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]
            killed.append(int(workers[0]))
            os.kill(killed[0], signal.SIGKILL)

    found = search(made, emit=kill_one, root=tmp_path, jobs=2)
    assert sorted(trial["code"] for trial in found.report["trials"]) == ["", "", "process_died"]


def test_as_many_trials_run_at_once_as_cores_and_memory_allow() -> None:
    gib = 2**30
    assert how_many(3, num_cores=1, available_bytes=gib, peak_bytes=8 * gib) == 3, "what the user says"
    assert how_many(0, num_cores=8, available_bytes=10 * gib, peak_bytes=2 * gib) == 4, "80 % of 10 GiB hold four"
    assert how_many(0, num_cores=2, available_bytes=100 * gib, peak_bytes=gib) == 2
    assert how_many(0, num_cores=8, available_bytes=gib, peak_bytes=2 * gib) == 1


def test_a_search_is_resumed_only_on_the_same_validation_rows(place: Path, tmp_path: Path) -> None:
    found = run(plan(place, {"train.lr": [1e-3, 1e-2]}, search={"sampler": "grid"}, train={"steps": 1}), tmp_path)
    values = yaml.safe_load((found.path / "recipe.yaml").read_text())
    values["seed"] = 2
    (found.path / "recipe.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError) as caught:
        resume(found.path, emit=silent)
    assert caught.value.code == "resume_mismatch"
    with pytest.raises(UserError) as caught:
        resume(tmp_path / "nothing", emit=silent)
    assert caught.value.code == "no_search"


def test_importance_finds_the_key_that_decides(place: Path, tmp_path: Path) -> None:
    made = plan(
        place,
        {"train.lr": LR, "train.optimizer.beta1": {"low": 0.5, "high": 0.9}},
        search={"sampler": "random", "trials": 30},
    )
    study = Study(made, tmp_path)
    assert study.importance() == {}
    while (asked := study.next()) is not None:
        value = asked.chosen["train.lr"] * 100 + asked.chosen["train.optimizer.beta1"] * 0.01
        study.tell(asked, Result("complete", value=value, validation_loss=value))
    shares = study.importance()
    assert list(shares) == ["train.lr", "train.optimizer.beta1"]
    assert shares["train.lr"] > 0.9 and sum(shares.values()) == pytest.approx(1.0)


def test_only_known_ways_to_end_early(place: Path) -> None:
    assert [type(make_pruner(name)).__name__ for name in ("none", "median", "halving")] == [
        "NopPruner",
        "MedianPruner",
        "SuccessiveHalvingPruner",
    ]

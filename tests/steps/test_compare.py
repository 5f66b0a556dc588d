"""A comparison on a tiny model: every row on the same questions, runs kept, files that vouch for each other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunesmith.core.errors import Interrupted, UserError
from tunesmith.core.events import Event, Finished, Metric, Started, silent
from tunesmith.core.publish import sha256
from tunesmith.data.load import load_data
from tunesmith.recipe import Recipe, make_recipe, override_recipe
from tunesmith.steps.compare import Comparison, compare
from tunesmith.steps.compare_cells import Unit
from tunesmith.steps.compare_work import Work

FACTS = [("tank", "two litres"), ("filter", "three months"), ("pump", "fifteen bar"), ("cord", "one metre")]


def write_rows(path: Path, wordings: tuple[str, ...]) -> None:
    rows = [
        {"question": wording.format(part), "answer": f"The {part}: {fact}.", "facts": [[fact]]}
        for wording in wordings
        for part, fact in FACTS
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    from tunesmith.models.tiny import write_tiny

    folder = tmp_path_factory.mktemp("project")
    write_tiny(folder / "model", "llama", "causal")
    write_rows(folder / "train.jsonl", ("What about the {}?", "Tell me of the {}.", "The {}, please.", "And the {}?"))
    write_rows(folder / "held.jsonl", ("How is the {}?", "Say more on the {}."))
    (folder / "pages").mkdir()
    pages = "\n\n".join(f"# {part}\n\nThe {part} has {fact}." for part, fact in FACTS)
    (folder / "pages" / "all.md").write_text(pages, encoding="utf-8")
    return make_recipe(
        {
            "name": "tiny",
            "model": {"name": str(folder / "model"), "precision": "fp32"},
            "data": {
                "source": str(folder / "train.jsonl"),
                "test": str(folder / "held.jsonl"),
                "documents": str(folder / "pages"),
                "split": {"validation": 0.25},
            },
            "train": {"steps": 2, "tokens_per_step": 128, "validations": 1},
            "generate": {"max_new_tokens": 4},
            "compare": {
                "rows": [
                    "zero_shot",
                    {"prompting": {"name": "few_shot", "k": 2}},
                    {"prompting": {"name": "rag", "k": 1}},
                    {"method": {"name": "lora", "rank": 2}},
                    {"method": "full", "title": "everything"},
                ]
            },
        }
    )


@pytest.fixture(scope="module")
def events() -> list[Event]:
    return []


@pytest.fixture(scope="module")
def comparison(recipe: Recipe, events: list[Event], tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return compare(recipe, emit=events.append, out=tmp_path_factory.mktemp("out"))


def test_every_row_is_scored_on_the_same_questions(comparison: Comparison) -> None:
    rows = comparison.report["rows"]
    assert [row["name"] for row in rows][:3] == ["zero-shot", "few-shot, 2", "retrieval, 1"]
    assert rows[4]["name"] == "everything"
    assert [row["kind"] for row in rows] == ["prompting", "prompting", "retrieval", "fine-tuning", "fine-tuning"]
    assert comparison.report["metric"] == "fact_match"
    assert all(row["fact_match"]["n"] == 8 for row in rows)
    assert all(set(row["fact_match"]) >= {"value", "low", "high", "n"} for row in rows)
    assert len(comparison.answers) == 8
    assert all([given["name"] for given in one["answers"]] == [r["name"] for r in rows] for one in comparison.answers)


def test_costs_are_measured(comparison: Comparison) -> None:
    rows = {row["name"]: row for row in comparison.report["rows"]}
    plain, full = rows["zero-shot"], rows["everything"]
    assert (plain["trainable_parameters"], plain["train_seconds"], plain["forgets"]) == (0, None, None)
    assert (
        full["trainable_parameters"]
        > next(iter(rows[n] for n in rows if "lora" in n.lower()))["trainable_parameters"]
        > 0
    )
    assert full["train_seconds"] > 0
    for row in rows.values():
        assert row["seconds_per_answer"] > 0
        assert row["peak_memory_bytes"] > 50 * 2**20
    before, after = full["general_perplexity"]
    assert full["forgets"] == pytest.approx(after / before - 1)


def test_longer_prompts_were_really_asked(comparison: Comparison) -> None:
    tokens = {
        row["name"]: sum(one["answers"][i]["prompt_tokens"] for one in comparison.answers)
        for i, row in enumerate(comparison.report["rows"])
    }
    assert tokens["few-shot, 2"] > tokens["zero-shot"]
    assert tokens["retrieval, 1"] > tokens["zero-shot"]
    assert tokens["everything"] == tokens["zero-shot"]


def test_changes_are_against_the_best_prompt_row(comparison: Comparison) -> None:
    report = comparison.report
    full = next(row for row in report["rows"] if row["name"] == "everything")
    rival = next(row for row in report["rows"] if row["name"] == report["verdict"]["rival"])
    gain = full["fact_match"]["value"] - rival["fact_match"]["value"]
    assert (len(full["fixed"]) - len(full["broken"])) / 8 == pytest.approx(gain)
    wrong = comparison.show("wrong")
    assert all(all(given["goodness"] == 0 for given in one["answers"]) for one in wrong)


def test_rows_are_told_as_they_come(comparison: Comparison, events: list[Event]) -> None:
    assert isinstance(events[0], Started)
    assert events[0].title.startswith("8 held-out questions · same rows, template, stop rules and 4-token limit")
    metrics = [event for event in events if isinstance(event, Metric) and event.step == "compare"]
    assert [(event.at, event.of, event.label) for event in metrics] == [
        (i, 5, row["name"]) for i, row in enumerate(comparison.report["rows"], 1)
    ]
    first = metrics[0].values
    assert list(first)[:3] == ["fact_match", "fact_match_low", "fact_match_high"]
    assert {"seconds_per_answer", "train_seconds", "peak_memory_bytes", "forgets"} <= set(first)
    last = events[-1]
    assert isinstance(last, Finished)
    assert last.text == comparison.verdict


def test_the_files_vouch_for_each_other(comparison: Comparison) -> None:
    out = comparison.path
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert set(report["files"]) == {"answers.jsonl", "compare.html", "plots/quality.png"}
    assert all(sha256(out / name) == sum_ for name, sum_ in report["files"].items())
    again = Comparison.open(out)
    assert again.report == json.loads(json.dumps(comparison.report))
    assert again.verdict == comparison.verdict


def test_runs_are_kept_and_used_again(comparison: Comparison, recipe: Recipe, tmp_path: Path) -> None:
    runs = [row["run"] for row in comparison.report["rows"] if row["run"]]
    assert all((comparison.path / run / "model").is_dir() for run in runs)
    again = compare(recipe, emit=silent, out=comparison.path)
    assert [row["run"] for row in again.report["rows"] if row["run"]] == runs
    assert [row["is_reused"] for row in comparison.report["rows"]] == [False] * 5
    assert [row["is_reused"] for row in again.report["rows"]] == [True] * 5
    for old, new in zip(comparison.report["rows"], again.report["rows"], strict=True):
        assert old["fact_match"] == new["fact_match"]
        assert (old["train_seconds"], old["train_peak_bytes"]) == (new["train_seconds"], new["train_peak_bytes"])


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(recipe: Recipe, tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, Metric):  # the first row is done
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="what is done is kept, and the same command goes on"):
        compare(recipe, emit=stop, out=tmp_path)
    assert len(list((tmp_path / "cells").iterdir())) == 1


def test_only_what_decides_a_row_makes_it_be_done_again(recipe: Recipe, tmp_path: Path) -> None:
    def files(changed: Recipe) -> list[str]:
        work = Work.plan(changed, load_data(changed.data, seed=changed.seed), tmp_path, silent)
        return [Unit(name, changed.seed).file(work).name for name, _ in work.rows]

    def same(changed: Recipe) -> list[bool]:
        return [one == other for one, other in zip(files(recipe), files(changed), strict=True)]

    assert same(override_recipe(recipe, train={"steps": 3}, method="full")) == [True, True, True, False, False]
    assert same(override_recipe(recipe, train={"trackers": ["tensorboard"], "checkpoints": 1})) == [True] * 5
    pages = tmp_path / "pages"
    pages.mkdir()
    elsewhere = override_recipe(recipe, data={"documents": str(pages)})
    (pages / "one.md").write_text("# One\n\nThe pump has a filter.", encoding="utf-8")
    before = files(elsewhere)
    (pages / "one.md").write_text("# One\n\nThe pump has two filters.", encoding="utf-8")
    kept = [one == other for one, other in zip(before, files(elsewhere), strict=True)]
    assert kept == [True, True, False, True, True], "only retrieval reads the pages"


def test_a_changed_file_is_noticed(comparison: Comparison, recipe: Recipe, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(comparison.path, copy, ignore=shutil.ignore_patterns("runs"))
    with (copy / "answers.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n")
    with pytest.raises(UserError, match=r"answers.jsonl is missing or was changed"):
        Comparison.open(copy)
    with pytest.raises(UserError, match="no comparison here"):
        Comparison.open(tmp_path)


def refused(recipe: Recipe, tmp_path: Path, **changes: object) -> UserError:
    values = recipe.model_dump(mode="json")
    for key, value in changes.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    with pytest.raises(UserError) as fault:
        compare(make_recipe(values), emit=silent, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    return fault.value


def test_retrieval_without_documents_is_refused_before_anything_is_loaded(recipe: Recipe, tmp_path: Path) -> None:
    fault = refused(recipe, tmp_path, data={"documents": ""})
    assert fault.line().startswith("rag needs documents to search. Set data.documents")


def test_a_row_with_a_method_and_a_run_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    fault = refused(recipe, tmp_path, compare={"rows": [{"method": "full", "run": "runs/a"}]})
    assert "has both `method` and `run`" in fault.message


def test_few_shot_on_labels_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "".join(f"row {i},{'ab'[i % 2]}\n" for i in range(20)), encoding="utf-8")
    fault = refused(recipe, tmp_path, data={"source": str(rows), "test": str(rows)}, compare={"rows": ["few_shot"]})
    assert fault.code == "prompting_unfit"


def test_a_finished_run_can_be_a_row(comparison: Comparison, recipe: Recipe, tmp_path: Path) -> None:
    run = next(str(comparison.path / row["run"]) for row in comparison.report["rows"] if row["run"])
    values = recipe.model_dump(mode="json")
    values["compare"] = {"rows": ["zero_shot", {"run": run, "title": "earlier"}], "limit": 3}
    found = compare(make_recipe(values), emit=silent, out=tmp_path / "out")
    row = found.report["rows"][1]
    assert (row["name"], row["kind"], row["is_reused"], row["fact_match"]["n"]) == ("earlier", "fine-tuning", True, 3)
    assert row["run"] == Path(run).name  # where it lies is nobody else's business


def test_labels_are_compared_by_method_alone(tmp_path: Path) -> None:
    from tunesmith.models.tiny import write_tiny

    write_tiny(tmp_path / "model", "bert", "classify")
    rows = "text,label\n" + "".join(f"the {w} is here {i},{w}\n" for i in range(16) for w in ("card", "cash"))
    (tmp_path / "train.csv").write_text(rows, encoding="utf-8")
    (tmp_path / "held.csv").write_text("text,label\na card,card\nsome cash,cash\nmy card,card\n", encoding="utf-8")
    recipe = make_recipe(
        {
            "name": "labels",
            "model": {"name": str(tmp_path / "model"), "precision": "fp32"},
            "data": {"source": str(tmp_path / "train.csv"), "test": str(tmp_path / "held.csv")},
            "method": "full",
            "train": {"steps": 2, "tokens_per_step": 64, "validations": 1},
        }
    )
    found = compare(recipe, emit=silent, out=tmp_path / "out").report
    (row,) = found["rows"]
    assert (found["metric"], found["noun"], row["kind"]) == ("accuracy", "rows", "fine-tuning")
    assert set(row["scores"]) == {"accuracy", "f1"}
    assert row["scores"]["accuracy"]["details"]["labels"] == ["card", "cash"]
    assert row["forgets"] is None
    assert "no prompt row to compare with" in found["verdict"]["sentence"]


def test_plain_text_is_compared_by_perplexity(recipe: Recipe, tmp_path: Path) -> None:
    texts = [f"The {part} holds {fact}, says page {i}." for i in range(8) for part, fact in FACTS]
    for name, rows in (("train", texts), ("held", texts[:3])):
        lines = [json.dumps({"text": text.replace("says", "says" if name == "train" else "so says")}) for text in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    values = recipe.model_dump(mode="json")
    files = {"source": str(tmp_path / "train.jsonl"), "test": str(tmp_path / "held.jsonl"), "documents": ""}
    values |= {"data": {**values["data"], **files}, "compare": {}, "method": {"name": "full"}}
    found = compare(make_recipe(values), emit=silent, out=tmp_path / "out").report
    assert [row["kind"] for row in found["rows"]] == ["prompting", "fine-tuning"]
    assert found["metric"] == "perplexity"
    assert not found["higher_is_better"]
    assert found["rows"][1]["forgets"] is not None
    assert found["rows"][0]["seconds_per_answer"] is None

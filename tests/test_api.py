"""The Python API: five lines from rows to a served model, the same errors as recipes, true one-line reprs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

import tunesmith as ts
from tunesmith.api import make_training
from tunesmith.models.tiny import write_tiny

ROWS = [{"question": f"what does light {n} mean", "answer": "the tank is empty"} for n in range(40)]
SHORT = {"steps": 3, "tokens_per_step": 128, "micro_tokens": 128, "validations": 1, "max_new_tokens": 4}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home of its own with a tiny model, which is the working directory for these tests."""
    folder = tmp_path_factory.mktemp("api")
    write_tiny(folder / "tiny", "llama")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def data(place: Path) -> ts.Data:
    return ts.data(ROWS, split={"validation": 0.1, "test": 0.2})


@pytest.fixture(scope="module")
def run(place: Path, data: ts.Data) -> ts.Run:
    return ts.train("tiny", data, method="lora", rank=2, evaluate="exact_match", **SHORT)


def test_importing_tunesmith_imports_nothing_heavy() -> None:
    code = "import sys, tunesmith; print([m for m in ('torch', 'pydantic', 'rich', 'yaml') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_data_and_models_are_verbs_and_packages_in_any_order() -> None:
    code = (
        "import tunesmith.data.load, tunesmith.models, tunesmith as ts; print(callable(ts.data), len(ts.models) >= 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True True\n"
    code = "import tunesmith as ts; ts.data; from tunesmith.data.load import load_data; print(callable(ts.data))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_every_public_name_is_there() -> None:
    assert all(getattr(ts, name) is not None for name in ts.__all__)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        ts.trian  # noqa: B018


def test_rows_from_memory_become_a_file_that_a_recipe_can_name(data: ts.Data, place: Path) -> None:
    assert Path(str(data.settings.source)).is_file()
    assert len(data.train) + len(data.validation) + len(data.test) == len(ROWS)
    assert ts.data(pd.DataFrame(ROWS)).settings.source == data.settings.source
    assert set(data.to_pandas()["side"]) == {"train", "validation", "test"}
    assert len(data.split(test=0.5).test) > len(data.test)


def test_reprs_are_one_true_line(data: ts.Data) -> None:
    sides = f"{len(data.train)} train, {len(data.validation)} validation, {len(data.test)} test rows"
    assert repr(data) == f"Data({data.name!r}, prompt_completion, {sides})"
    assert repr(data.test) == f"Rows('test', {len(data.test)} rows of {data.name!r})"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"epoch": 3}, '"epoch" is not a setting of train; did you mean "epochs"? [unknown_setting]'),
        ({"rnak": 3}, '"rnak" is not a setting of method; did you mean "rank" or "ranks"? [unknown_setting]'),
        ({"max_lenght": 3}, '"max_lenght" is not a setting of data; did you mean "max_length"? [unknown_setting]'),
        ({"method": "lroa"}, 'there is no method "lroa"; did you mean "lora"? All: tunesmith plugins methods'),
        ({"epochs": -1}, "`train.epochs` cannot be -1: Input should be greater than 0. [bad_value]"),
        ({"lr": "fast"}, "`train.lr` cannot be 'fast':"),
    ],
)
def test_a_wrong_setting_is_told_as_in_a_recipe(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ts.UserError) as caught:
        make_training("tiny", "rows.jsonl", **settings)  # type: ignore[arg-type]
    assert caught.value.line().startswith(said)


def test_a_setting_without_any_like_it_lists_those_of_train() -> None:
    with pytest.raises(ts.UserError, match='"banana" is not a setting of train') as caught:
        make_training("tiny", "rows.jsonl", banana=1)
    assert "Its settings: epochs, steps" in caught.value.remedy


def test_flat_settings_find_their_sections() -> None:
    recipe = make_training("tiny", "rows.jsonl", rank=4, epochs=1, max_new_tokens=5, max_length=64, seed=3)
    assert recipe.method.spec()["rank"] == 4
    assert (recipe.train.epochs, recipe.generate.max_new_tokens, recipe.data.max_length, recipe.seed) == (1, 5, 64, 3)
    assert recipe.name == "rows-lora"


def test_a_recipe_file_keeps_what_is_not_changed(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("model: tiny\ndata: {source: rows.jsonl}\nmethod: {name: lora, rank: 8}\ntrain: {epochs: 2}\n")
    recipe = make_training(file, epochs=5)
    assert (recipe.name, recipe.method.spec()["rank"], recipe.train.epochs) == ("mine", 8, 5)


@pytest.mark.parametrize(
    ("source", "said"), [([], "there are no rows"), ([1], "row 0 is int"), ("nope.jsonl", "there is no such file")]
)
def test_what_is_no_data_is_refused(source: object, said: str, tmp_path: Path) -> None:
    with pytest.raises(ts.UserError, match=said):
        ts.data(source, home=tmp_path)


def test_a_wrong_row_of_a_comparison_suggests_the_nearest(data: ts.Data) -> None:
    with pytest.raises(ts.UserError, match='there is no row "zero-shto"') as caught:
        ts.compare(data.test, ["zero-shto"])
    assert 'did you mean "zero-shot"?' in caught.value.remedy


def test_a_run_is_trained_and_opened_again(run: ts.Run) -> None:
    assert run.state == "finished"
    assert repr(run).startswith(f"Run({str(run.path)!r}, finished, validation_loss=")
    again = ts.run(run.path.name)
    assert again.path == run.path
    assert run.recipe.method.spec()["rank"] == 2
    assert run.metrics["step"].max() == 3
    assert run.best["validation_loss"] == run.report["training"]["best_validation_loss"]
    assert isinstance(run.chat("what does light 3 mean"), str)
    assert run.generate(["what does light 3 mean"]) == [run.chat("what does light 3 mean")]
    html = run._repr_html_()
    assert "exact_match" in html
    assert "<style" not in html
    assert "<script" not in html


def test_a_run_is_scored_with_every_answer(run: ts.Run, data: ts.Data) -> None:
    report = ts.evaluate(run, metrics=["exact_match"])
    assert len(report.answers()) == len(data.test)
    score = report.rows[0]["scores"]["exact_match"]
    assert score["n"] == len(data.test)
    assert "exact match" in report.verdict
    assert list(report.to_pandas()["exact_match"]) == [score["value"]]


def test_a_run_is_compared_with_prompting(run: ts.Run, data: ts.Data, place: Path) -> None:
    report = ts.compare(data.test, ["zero-shot", "few-shot", run], evaluate="exact_match", max_new_tokens=4)
    assert [row["kind"] for row in report.rows] == ["prompting", "prompting", "fine-tuning"]
    assert report.rows[2]["name"] == run.path.name
    assert report.path is not None
    assert (place / report.path / "report.json").is_file()
    assert len(report.answers()) == len(data.test)
    assert report.to_html().lstrip().lower().startswith("<!doctype html")
    assert "<table" in report._repr_html_()
    assert len(report.to_pandas()) == 3


def test_a_run_of_other_data_is_not_compared(run: ts.Run) -> None:
    other = ts.data([{"question": f"q {n}", "answer": "a"} for n in range(30)], split={"validation": 0.1, "test": 0.2})
    with pytest.raises(ts.UserError, match="split the same way"):
        ts.compare(other.test, [run], evaluate="exact_match")


def test_a_run_is_registered_promoted_and_served(run: ts.Run) -> None:
    version = ts.register(run, "manual")
    assert version.reference == "manual:1"
    assert ts.models["manual"].champion is None
    version.promote()
    assert ts.models["manual"].champion == version
    assert repr(ts.models["manual"]) == "Model('manual', 1 version, champion manual:1)"
    assert repr(version) == "Version('manual:1', champion)"
    assert list(ts.models) == ["manual"]
    assert ts.models["manual"].history[-1].number == 1
    with ts.serve(version) as server:
        said = server.client().chat.completions.create(
            model="manual:1", messages=[{"role": "user", "content": "what does light 3 mean"}], temperature=0
        )
        assert said.choices[0].message.content == run.chat("what does light 3 mean")
        assert server.url in repr(server)


def test_an_unknown_model_or_version_is_refused(run: ts.Run) -> None:
    with pytest.raises(ts.UserError, match="there is no registered model"):
        ts.models["nobody"]
    version = ts.register(run, "manual")
    assert version.reference == "manual:1", "the same model again is the same version"
    with pytest.raises(ts.UserError):
        ts.models["manual"][99]


def test_several_seeds_give_a_mean_and_a_spread(place: Path, data: ts.Data) -> None:
    seeds = ts.train_seeds("tiny", data, num_seeds=2, method="lora", rank=2, evaluate="perplexity", shots=5, **SHORT)
    score = seeds.scores["perplexity"]
    assert score["mean"] == pytest.approx(sum(score["values"]) / 2)
    assert [run.state for run in seeds.runs] == ["finished", "finished"]
    assert list(seeds.to_pandas()["metric"]) == ["perplexity"]
    assert repr(seeds).startswith("Seeds(") and "±" in seeds._repr_html_()

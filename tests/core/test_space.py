"""Ranges beside a recipe's keys: what they mean, which combinations there are, and what is refused with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.core.errors import UserError
from tunesmith.core.space import Choice, Range, label, take_space, without_ranges
from tunesmith.recipe import read_recipe
from tunesmith.steps.search_plan import SearchPlan

BASE = "model: tiny\ndata: {source: rows.jsonl}\n"


def plan(folder: Path, text: str, *overrides: str) -> SearchPlan:
    (folder / "r.yaml").write_text(BASE + text, encoding="utf-8")
    return SearchPlan.read(folder / "r.yaml", overrides)


def refused(folder: Path, text: str, *overrides: str) -> UserError:
    with pytest.raises(UserError) as caught:
        plan(folder, text, *overrides)
    return caught.value


def test_a_range_beside_a_key_is_taken_out_and_its_first_value_put_in(tmp_path: Path) -> None:
    made = plan(
        tmp_path, "train: {lr: {low: 1e-5, high: 1e-3, log: true}}\nmethod: {rank: {any_of: [4, 8]}, name: lora}\n"
    )
    assert made.space.axes == {"train.lr": Range(1e-5, 1e-3, is_log=True), "method.rank": Choice((4, 8))}
    assert (made.recipe.train.lr, made.recipe.method.rank) == (1e-5, 4)  # type: ignore[attr-defined]


def test_the_same_range_by_name_leaves_the_value_and_the_recipe_still_trains(tmp_path: Path) -> None:
    made = plan(tmp_path, "train: {lr: 2e-4}\nsearch: {space: {train.lr: {low: 1e-5, high: 1e-3, log: true}}}\n")
    assert made.space.axes == {"train.lr": Range(1e-5, 1e-3, is_log=True)}
    assert made.recipe.train.lr == 2e-4
    assert read_recipe(tmp_path / "r.yaml").train.lr == 2e-4


def test_nested_names_and_overrides_mean_the_same(tmp_path: Path) -> None:
    nested = plan(tmp_path, "search: {space: {train: {epochs: [1, 2]}}}\n").space.axes
    typed = plan(tmp_path, "", "train.epochs={any_of: [1, 2]}").space.axes
    assert nested == typed == {"train.epochs": Choice((1, 2))}


def test_what_trains_refuses_a_range_and_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(BASE + "train:\n  lr: {low: 1e-5, high: 1e-3}\n")
    with pytest.raises(UserError) as caught:
        read_recipe(tmp_path / "r.yaml")
    assert (caught.value.code, caught.value.where) == ("range_in_recipe", f"{tmp_path / 'r.yaml'}:4")
    assert "tunesmith search" in caught.value.remedy and "train.lr=VALUE" in caught.value.remedy


@pytest.mark.parametrize(
    ("space", "code", "words"),
    [
        ("train.lr: {low: 1e-3, high: 1e-5}", "empty_range", "low 0.001 is not below high 1e-05"),
        ("train.lr: {low: 1e-3}", "bad_range", "no `high`"),
        ("train.lr: {low: 1e-5, high: 1e-3, logs: true}", "unknown_setting", '"logs" is not a setting of a range'),
        ("train.lr: {low: 0, high: 1e-3, log: true}", "bad_range", "begins above 0"),
        ("train.lr: {low: abc, high: 1}", "bad_range", "`low` cannot be 'abc'"),
        ("train.lr: [1e-3]", "empty_range", "no choice"),
        ("train.lr: [1e-3, 0.001]", "repeated_value", "0.001 stands twice"),
        ("train.lr: 3", "bad_range", "neither a range nor a list"),
        ("train.lrr: [1, 2]", "unknown_setting", '"lrr" is not a setting of train'),
        ("trian.lr: [1, 2]", "unknown_setting", '"trian" is not a setting of the recipe'),
        ("train.lr: {low: -1, high: 1}", "bad_value", "`train.lr` cannot be -1"),
        ("train.epochs: [1, two]", "bad_value", "`train.epochs` cannot be 'two'"),
        ("method: [lora, lorra]", "unknown_method", 'no method "lorra"'),
        ("method.rnk: [1, 2]", "unknown_setting", '"rnk" is not a setting of method'),
        ("seed: [1, 2]", "not_searchable", "rows that trials are judged by would change"),
        ("data.split.validation: [0.1, 0.2]", "not_searchable", "judged by"),
        ("model.name: [a, b]", "loss_not_comparable", "by their losses"),
        ("data.max_length: [64, 128]", "loss_not_comparable", "by their losses"),
    ],
)
def test_a_wrong_range_is_refused_where_it_stands(tmp_path: Path, space: str, code: str, words: str) -> None:
    fault = refused(tmp_path, f"search:\n  space:\n    {space}\n")
    assert fault.code == code, fault.line()
    assert fault.where == f"{tmp_path / 'r.yaml'}:5", fault.line()
    assert words in fault.message, fault.line()


def test_another_tokenizer_may_be_searched_by_a_score_that_does_not_count_its_tokens(tmp_path: Path) -> None:
    made = plan(tmp_path, "search: {metric: exact_match, space: {model.name: [a, b]}}\n")
    assert made.higher_is_better and made.metric_name == "exact_match"


def test_nothing_to_search_says_how_a_range_looks(tmp_path: Path) -> None:
    fault = refused(tmp_path, "train: {lr: 1e-3}\n")
    assert fault.code == "no_space" and "low: 1e-5" in fault.remedy
    assert "any_of" in fault.remedy  # for whom wrote a plain list beside the key


def test_a_setting_is_asked_for_only_beside_methods_that_have_it(tmp_path: Path) -> None:
    text = "search: {sampler: grid, space: {method: [full, lora], method.rank: [2, 4], train.epochs: [1, 2]}}\n"
    made = plan(tmp_path, text)
    assert list(made.space.axes) == ["method", "method.rank", "train.epochs"]
    assert not made.space.is_active("method.rank", {"method": "full"})
    assert made.combinations == [
        {"method": "full", "train.epochs": 1},
        {"method": "full", "train.epochs": 2},
        {"method": "lora", "method.rank": 2, "train.epochs": 1},
        {"method": "lora", "method.rank": 2, "train.epochs": 2},
        {"method": "lora", "method.rank": 4, "train.epochs": 1},
        {"method": "lora", "method.rank": 4, "train.epochs": 2},
    ]
    fault = refused(tmp_path, "search: {space: {method: [full, bitfit], method.rank: [2, 4]}}\n")
    assert fault.code == "unknown_setting"


def test_a_chosen_method_keeps_the_settings_that_the_recipe_gives_it(tmp_path: Path) -> None:
    made = plan(
        tmp_path, "method: {name: lora, rank: 3}\nsearch: {space: {method: [lora, {name: lora, rank: 5}, full]}}\n"
    )
    ranks = [
        getattr(made.recipe_for({"method": option}).method, "rank", None)
        for option in made.space.axes["method"].values()
    ]
    assert ranks == [3, 5, None]


def test_a_grid_counts_steps_and_refuses_what_it_cannot_count_or_finish(tmp_path: Path) -> None:
    grid = "search: {{sampler: grid, trials: {trials}, space: {{{space}}}}}\n"
    made = plan(
        tmp_path,
        grid.format(trials=12, space="train.epochs: {low: 1, high: 3}, train.lr: {low: 0.1, high: 0.3, step: 0.1}"),
    )
    assert len(made.combinations) == made.num_trials == 9
    assert [one["train.lr"] for one in made.combinations[:3]] == [0.1, 0.2, 0.3]
    assert (
        refused(tmp_path, grid.format(trials=9, space="train.lr: {low: 1e-5, high: 1e-3, log: true}")).code
        == "uncountable"
    )
    fault = refused(tmp_path, grid.format(trials=3, space="train.epochs: [1, 2], seed: [1, 2], train.lr: [0.1, 0.2]"))
    assert fault.code == "not_searchable"
    fault = refused(tmp_path, grid.format(trials=3, space="train.epochs: [1, 2], train.lr: [0.1, 0.2]"))
    assert fault.code == "grid_too_large" and "search.trials=4" in fault.remedy


def test_a_column_called_low_is_no_range() -> None:
    values = {"model": "m", "data": {"source": "r", "columns": {"low": "input", "high": "output"}}}
    assert without_ranges(values) == values
    with pytest.raises(UserError, match="nothing to search"):
        take_space(values)


def test_options_have_short_names() -> None:
    assert label({"name": "bottleneck", "reduction_factor": 8}) == "bottleneck (reduction factor 8)"
    assert [label(one) for one in ("lora", 4, 0.5, True)] == ["lora", 4, 0.5, True]

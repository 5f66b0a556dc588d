"""The recipe: one YAML file, checked with file and line, overridden by key=value, recorded in full."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.core.errors import UserError
from tunesmith.core.overrides import apply_override
from tunesmith.recipe import Recipe, make_recipe, override_recipe, read_recipe

SMALLEST = "model: tunesmith/base\ndata: {source: rows.jsonl}\n"


def write(folder: Path, text: str) -> Path:
    file = folder / "tickets.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def fault_of(folder: Path, text: str, *overrides: str) -> UserError:
    with pytest.raises(UserError) as fault:
        read_recipe(write(folder, text), overrides)
    return fault.value


def test_a_model_and_a_source_are_enough(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, SMALLEST))
    assert recipe.name == "tickets"
    assert recipe.model.name == "tunesmith/base"
    assert recipe.method.name == "lora"
    assert recipe.objective == "auto" and recipe.evaluate == "auto" and recipe.train.lr == "auto"


def test_a_wrong_key_shows_file_line_and_frame(tmp_path: Path) -> None:
    text = SMALLEST + "\n\n\ntrain:\n  epoch: 3\n"
    fault = fault_of(tmp_path, text)
    assert fault.line() == (
        f'{tmp_path}/tickets.yaml:7: "epoch" is not a setting of train; did you mean "epochs"? [unknown_setting]'
    )
    assert fault.frame == "   6 | train:\n   7 |   epoch: 3\n     |   ^^^^^"


def test_a_wrong_key_of_a_plugin_shows_its_line_too(tmp_path: Path) -> None:
    fault = fault_of(tmp_path, SMALLEST + "method:\n  name: lora\n  rnk: 4\n")
    assert fault.where == f"{tmp_path}/tickets.yaml:5"
    assert 'did you mean "rank"?' in fault.line() and "^^^" in fault.frame


def test_a_key_of_another_place_is_sent_there(tmp_path: Path) -> None:
    fault = fault_of(tmp_path, SMALLEST + "train: {rank: 4}\n")
    assert fault.line().endswith('"rank" is not a setting of train; "rank" is a setting of `method`. [unknown_setting]')


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        ("data: {source: x}\n", "", "`model` is missing."),
        ("model: m\n", "", "`data` is missing."),
        ("model: m\ndata: {}\n", ":2", "`data.source` is missing."),
        (SMALLEST + "seed: -1\n", ":3", "`seed` cannot be -1: Input should be greater than or equal to 0."),
        (SMALLEST + "method: lroa\n", ":3", 'there is no method "lroa"; did you mean "lora"?'),
        (SMALLEST + "evaluate: [blue]\n", ":3", 'there is no metric "blue"; did you mean "bleu"?'),
        (SMALLEST + "evaluate:\n- bleu\n- {name: rouge, variant: rouge9}\n", ":5", "`evaluate.variant` cannot be"),
        ("model: m\ndata:\n  source: x\n  format: chatt\n", ":4", 'did you mean "chat"?'),
        (SMALLEST + "compare:\n  rows:\n  - few_shots\n", ":5", 'did you mean "few_shot"?'),
        (SMALLEST + "compare:\n  rows:\n  - method: {name: lora,\n      rnk: 3}\n", ":6", 'did you mean "rank"?'),
        (SMALLEST + "compare:\n  rows: [7]\n", ":4", "compare.rows.0"),
        (SMALLEST + "train: {epochs: .nan}\n", ":3", "`train.epochs` cannot be nan"),
        (SMALLEST + "seed: 1\nseed: 2\n", ":4", '"seed" is set twice. Keep one.'),
        (SMALLEST + "train: {lr: 1.0e-4, lr: 2.0e-4}\n", ":3", '"lr" is set twice. Keep one.'),
        ("a: &x 1\nb: *x\n", ":2", "aliases (*name) are not allowed in a recipe."),
        ("model: [\n", ":2", "this is not YAML"),
        ("- a\n- b\n", "", "a recipe is a mapping of settings."),
        ("", "", "a recipe is a mapping of settings."),
        ("? [a, b]\n: 1\n", ":1", "a key must be a word."),
        ("model: a\0b\n", "", "this is not YAML"),
        (SMALLEST + "seed: 2025-99-99\n", "", "this is not YAML: month must be in 1..12."),
        ("a: " + "[" * 3000 + "]" * 3000, "", "nested too deeply"),
        ("model: !!python/object/apply:os.system ['true']\ndata: {source: x}\n", ":1", "this is not YAML"),
    ],
)
def test_each_fault_says_where_and_what(tmp_path: Path, text: str, where: str, message: str) -> None:
    fault = fault_of(tmp_path, text)
    assert message in fault.line()
    assert fault.where == f"{tmp_path}/tickets.yaml{where}"


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, SMALLEST)
    with pytest.raises(UserError) as fault:
        read_recipe(tmp_path / "ticket.yaml")
    assert fault.value.code == "no_file" and "tickets.yaml" in fault.value.remedy


def test_a_folder_or_a_binary_or_a_huge_file_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the recipe cannot be read"):
        read_recipe(tmp_path)
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="the recipe cannot be read"):
        read_recipe(tmp_path / "b.yaml")
    (tmp_path / "c.yaml").write_bytes(b"# " + b"x" * 1_000_000)
    with pytest.raises(UserError, match="at most 1 MB"):
        read_recipe(tmp_path / "c.yaml")


def test_overrides_go_over_the_file_and_into_short_forms(tmp_path: Path) -> None:
    file = write(tmp_path, SMALLEST + "method: full\ntrain: {epochs: 2}\n")
    overrides = ["train.lr=2e-4", "train.epochs=5", "model.precision=fp32", "method=lora", "method.rank=4", "seed=9"]
    recipe = read_recipe(file, overrides)
    assert (recipe.train.lr, recipe.train.epochs, recipe.seed) == (2e-4, 5, 9)
    assert recipe.model.name == "tunesmith/base" and recipe.model.precision == "fp32"
    assert recipe.method.spec()["rank"] == 4
    assert read_recipe(write(tmp_path, SMALLEST), ["method.rank=8"]).method.spec()["rank"] == 8
    assert read_recipe(write(tmp_path, SMALLEST), ["data.split.test=0.2"]).data.split.test == 0.2
    assert read_recipe(write(tmp_path, SMALLEST), ["evaluate=[bleu, rouge]"]).evaluate[1].name == "rouge"  # type: ignore[union-attr]


@pytest.mark.parametrize("wrong", ["train.lr", "=3", " =3"])
def test_an_override_without_key_or_value_is_refused(tmp_path: Path, wrong: str) -> None:
    fault = fault_of(tmp_path, SMALLEST, wrong)
    assert fault.code == "bad_override" and "KEY=VALUE" in fault.message


def test_a_wrong_override_names_the_setting(tmp_path: Path) -> None:
    assert 'did you mean "epochs"?' in fault_of(tmp_path, SMALLEST, "train.epoch=3").line()
    assert "`train.epochs` cannot be 'many'" in fault_of(tmp_path, SMALLEST, "train.epochs=many").line()


def test_a_fault_of_an_override_is_located_in_it_and_not_in_the_file(tmp_path: Path) -> None:
    text = SMALLEST + "train:\n  lr: 0.001\n"
    for override in ("train.lr=-1", "train.lrr=1", "method=lorra", "method.rank=0"):
        assert fault_of(tmp_path, text, "seed=3", override).where == f"the override {override}"
    assert fault_of(tmp_path, text + "  epoch: 3\n", "train.lr=0.1").where.endswith("tickets.yaml:5")


def test_a_fault_within_one_of_several_shapes_names_the_key_of_that_shape(tmp_path: Path) -> None:
    for value, message in (
        ("{temperature: 0}", "`data.mixing.temperature` cannot be 0: Input should be greater than or equal to 1."),
        ("{temprature: 2}", '"temprature" is not a setting of data.mixing; did you mean "temperature"?'),
        ("often", "`data.mixing` cannot be 'often': Input should be 'proportional' or 'equal'."),
    ):
        assert message in fault_of(tmp_path, SMALLEST, f"data.mixing={value}").line()
    line = fault_of(tmp_path, SMALLEST, "data.source=[{path: a, wieght: 2}]").line()
    assert '"wieght" is not a setting of data.source.0; did you mean "weight"?' in line


def test_on_and_off_are_words_and_true_is_true(tmp_path: Path) -> None:
    assert read_recipe(write(tmp_path, SMALLEST + "train: {packing: off}\n")).train.packing == "off"
    assert read_recipe(write(tmp_path, SMALLEST), ["train.cache=off"]).train.cache == "off"
    assert read_recipe(write(tmp_path, SMALLEST), ["model.trust_remote_code=true"]).model.trust_remote_code is True
    assert read_recipe(write(tmp_path, SMALLEST), ["model.trust_remote_code=False"]).model.trust_remote_code is False


def test_overrides_keep_text_that_is_no_yaml() -> None:
    values: dict[str, object] = {}
    apply_override(values, "data.source=[oops")
    apply_override(values, "name=")
    apply_override(values, "data.system=a=b")
    assert values == {"data": {"source": "[oops", "system": "a=b"}, "name": ""}


def test_short_forms_mean_the_long_ones(tmp_path: Path) -> None:
    short = make_recipe({"model": "m", "data": {"source": "x"}, "evaluate": "bleu", "compare": {"rows": ["zero_shot"]}})
    long = make_recipe(
        {
            "model": {"name": "m"},
            "data": {"source": "x"},
            "method": {"name": "lora"},
            "evaluate": [{"name": "bleu"}],
            "compare": {"rows": [{"prompting": {"name": "zero_shot"}}]},
        }
    )
    assert short == long and short.fingerprint() == long.fingerprint()


def test_the_fingerprint_changes_with_every_setting() -> None:
    recipe = make_recipe({"model": "m", "data": {"source": "x"}})
    same = make_recipe({"data": {"source": "x"}, "model": "m"})
    others = [
        override_recipe(recipe, seed=2),
        override_recipe(recipe, train={"lr": 1e-3}),
        override_recipe(recipe, method={"name": "lora", "rank": 3}),
        override_recipe(recipe, data={"source": "y"}),
    ]
    assert recipe.fingerprint() == same.fingerprint()
    assert len({recipe.fingerprint(), *(other.fingerprint() for other in others)}) == 5


def test_what_is_recorded_reads_back_equal(tmp_path: Path) -> None:
    text = SMALLEST + (
        "method: {name: lora, rank: 4}\nobjective: sft\nevaluate: [rouge, exact_match]\n"
        "compare: {rows: [zero_shot, {prompting: few_shot, title: Größe}]}\ntrain: {lr: 2e-4}\n"
    )
    recipe = read_recipe(write(tmp_path, text))
    (tmp_path / "recorded.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    again = read_recipe(tmp_path / "recorded.yaml")
    assert again == recipe and again.fingerprint() == recipe.fingerprint()
    assert isinstance(again, Recipe) and again.train.lr == 2e-4


def test_overriding_a_recipe_changes_only_what_is_named() -> None:
    recipe = make_recipe({"model": "m", "data": {"source": "x", "system": "s"}, "train": {"epochs": 2}})
    other = override_recipe(recipe, train={"lr": 1e-3}, data={"source": "y"})
    assert (other.train.epochs, other.train.lr) == (2, 1e-3)
    assert (other.data.source, other.data.system) == ("y", "s")
    assert recipe.data.source == "x"

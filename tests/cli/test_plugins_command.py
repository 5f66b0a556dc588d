"""`tunesmith plugins`: kinds, plug-ins, settings, sections of the recipe."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tunesmith.cli.main import main
from tunesmith.core.plugins import KINDS, names


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["plugins", *words]) == 0
    return capsys.readouterr().out


def test_every_kind_and_plugin_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    listed = {one["name"]: one["plugins"] for one in json.loads(shown(capsys, "--json"))}
    assert listed == {folder: names(folder) for folder in KINDS if names(folder)}
    text = shown(capsys)
    assert all(kind in text for kind in listed)


def test_a_kind_is_known_by_its_singular_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, "method", "--json") == shown(capsys, "methods", "--json")


def test_methods_show_what_they_cost_on_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    listed = {one["name"]: one for one in json.loads(shown(capsys, "methods", "--json"))}
    assert list(listed) == names("methods")
    lora = listed["lora"]
    assert lora["share"] == lora["trainable"] / lora["total"]
    assert (lora["optimizer_bytes"], lora["learning_rate"]) == (8 * lora["trainable"], 2e-4)
    assert 0 < lora["disk_bytes"] < listed["full"]["disk_bytes"]
    assert "vocabulary" in listed["feature_extraction"]["refused"]
    assert all(one["summary"] for one in listed.values())


def test_methods_are_readable_in_80_columns(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("TUNESMITH_ACCESSIBLE", raising=False)
    text = shown(capsys, "methods")
    assert max(len(line) for line in text.splitlines()) <= 80
    summaries, costs, refused, _ = text.split("\n\n")
    assert len(summaries.splitlines()) <= 1 + 2 * len(names("methods"))  # two lines each at most
    assert [line.split()[0] for line in costs.splitlines()[1:]] == names("methods")
    assert "0.0002" in next(line for line in costs.splitlines() if line.startswith("lora "))
    assert refused.startswith("not on tunesmith/base") and "bitfit" in refused and "no biases" in refused


def test_a_method_shows_its_whole_text_and_its_learning_rate(
    capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = shown(capsys, "methods", "lora")
    assert "\n- rslora (arXiv:2312.03732" in text and "\n- lora_plus (arXiv:2402.12354" in text
    assert "Peak learning rate: 0.0002" in text
    assert max(len(line) for line in text.splitlines()) <= 80
    assert json.loads(shown(capsys, "methods", "lora", "--json"))["learning_rate"] == 2e-4


@pytest.mark.parametrize("kind", [folder for folder in KINDS if names(folder)])
def test_every_plugin_shows_its_documented_settings(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name in names(kind):
        value = json.loads(shown(capsys, kind, name, "--json"))
        assert value["name"] == name
        assert value["summary"]
        assert all(one["documentation"] for one in value["settings"]), value


def test_a_plugins_settings_have_type_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    settings = {one["name"]: one for one in json.loads(shown(capsys, "methods", "lora", "--json"))["settings"]}
    assert (settings["rank"]["type"], settings["rank"]["default"]) == ("whole number, > 0", "16")
    assert "rank   whole number, > 0 · default 16" in shown(capsys, "methods", "lora")


def test_sections_of_the_recipe_are_shown_the_same_way(capsys: pytest.CaptureFixture[str]) -> None:
    assert "tokens_per_step" in shown(capsys, "train")
    assert "group_by" in shown(capsys, "data.split")
    assert "size_limit" in shown(capsys, "data.mixing")  # one of several things
    assert "loss_weight" in shown(capsys, "data.source")  # in a list
    assert "needed" in shown(capsys, "model")
    assert "sampler" in shown(capsys, "search")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["methdos"], 'there is no kind "methdos"; did you mean "methods" or "method"?'),
        (["methods", "lroa"], 'there is no method "lroa"; did you mean "lora"?'),
        (["data", "splt"], 'there is no group in data "splt"; did you mean "split"?'),
    ],
)
def test_a_wrong_name_suggests_the_nearest(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", *words]) == 1
    assert said in capsys.readouterr().err

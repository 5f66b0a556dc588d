"""The library of native passes: made once, proven, made again where it is damaged, and never a reason to fail."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from made_training import loop_in, make_learner, make_rows
from tunesmith.core.events import Event, Warning
from tunesmith.core.plugins import build
from tunesmith.kernels.native_passes import in_use
from tunesmith.models.rates import compiler
from tunesmith.models.tiny import tiny
from tunesmith.recipe import TrainSettings
from tunesmith.training import native
from tunesmith.training.choices import choices
from tunesmith.training.loop import Loop
from tunesmith.training.native import Found, native_passes, wished

SETTINGS = {"steps": 2, "tokens_per_step": 60, "lr": 1e-2, "validations": 1, "patience": 0}
CPU = torch.device("cpu")
make_now = native_passes.__wrapped__  # without what this process remembers
needs_compiler = pytest.mark.skipif(not compiler(), reason="needs a C++ compiler, which is not here")


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "tunesmith" / "native"


def _loop(folder: Path, events: list[Event], **settings) -> Loop:
    objective = build("objectives", "sft")
    learner = make_learner(build("methods", "lora"), "llama", objective)
    rows = make_rows(objective, tiny("llama", "causal")[1])
    return loop_in(folder, learner, rows, rows, {**SETTINGS, **settings}, events.append)


@needs_compiler
def test_it_is_made_once_and_read_back(cache, monkeypatch) -> None:
    found = make_now()
    assert found.passes is not None and "times as fast as PyTorch's operations, " in found.why
    (folder,) = cache.iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "passes.so", "verdict.json"]
    monkeypatch.setattr(native, "_make", lambda *arguments: pytest.fail("made twice"))
    assert make_now().why == found.why


@needs_compiler
def test_what_is_damaged_is_made_again(cache) -> None:
    make_now()
    (library,) = cache.glob("*/passes.so")
    whole = library.read_bytes()
    library.unlink()  # this process has it mapped
    library.write_bytes(whole[:1000])
    assert make_now().passes is not None
    assert library.stat().st_size == len(whole)


@needs_compiler
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("load(from[d]) * factor * scale[d]", "load(from[d]) * factor"),
        ("(load(given[d]) * scale[d] - load(from[d]) * share)", "(load(given[d]) * scale[d])"),
        ("return x * logistic(x);", "return x * logistic(1.1f * x);"),
        ("s * (1.0f + x * (1.0f - s))", "s * (1.0f + x * (0.9f - s))"),
        ("3.0f * 0.044715f", "2.0f * 0.044715f"),
        ("a * load(c[d]) - b * load(s[d])", "a * load(c[d]) + b * load(s[d])"),
        ("a * load(c[d]) + b * load(s[half + d])", "a * load(c[d]) - b * load(s[half + d])"),
        ("std::min(last + query, columns)", "columns"),
        ("values[labels[row]] * factor - 1.0f", "values[labels[row]] * factor"),
        ("2.0f * z_loss * log_total", "z_loss * log_total"),
    ],
)
def test_passes_that_compute_something_else_are_not_used(cache, monkeypatch, tmp_path, right, wrong) -> None:
    _break(right, wrong, tmp_path, monkeypatch)
    found = make_now()
    assert found.passes is None and "is not what PyTorch computes" in found.why


@needs_compiler
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("min(span.keys(), first + count + attend.right)", "min(span.keys(), first + count + attend.right - 1)"),
        ("max(0L, key - attend.right - first)", "max(0L, key - attend.right - first + 1)"),
        ("min(count, key + attend.left + 1 - first)", "min(count, key + attend.left - first)"),
        ("inverse, block.count, out", "largest, block.count, out"),
        ("logs[q] + std::log(sum[q])", "std::log(sum[q])"),
        ("dots[q] = dot;", "dots[q] = 0;"),
        ("products<false>(keys_turned + block.low, padded", "products<false>(keys_turned, padded"),
        ("attend.scale, grad_key", "1.0f, grad_key"),
        ("value_sums, keys, width, 1.0f", "value_sums, keys - 1, width, 1.0f"),
        ("query_columns + at * 2, QUERIES", "query_columns, QUERIES"),
    ],
)
def test_attention_that_computes_something_else_is_not_used(cache, monkeypatch, tmp_path, right, wrong) -> None:
    found = native_passes()
    assert found.passes is not None
    if not found.passes.attends:
        pytest.skip("needs a processor that multiplies pairs of bf16 numbers")
    _break(right, wrong, tmp_path, monkeypatch)
    found = make_now()
    assert found.passes is None and "is not what PyTorch computes" in found.why


def _break(right: str, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put sources in place of the passes' own in which one formula is another, compiled sooner and not timed."""
    sources = tmp_path / "sources"
    shutil.copytree(native.SOURCES, sources)
    (source,) = (path for path in sources.iterdir() if right in path.read_text(encoding="utf-8"))
    text = source.read_text(encoding="utf-8")
    assert text.count(right) == 1
    source.write_text(text.replace(right, wrong), encoding="utf-8")
    monkeypatch.setattr(native, "SOURCES", sources)
    monkeypatch.setattr(native, "FLAGS", ("-O1", *native.FLAGS[1:]))
    monkeypatch.setattr(native, "_best_seconds", lambda work: 1.0)


@needs_compiler
def test_attention_that_is_no_faster_stays_as_it_was(cache, monkeypatch) -> None:
    verdict = {"is_right": True, "ratio": 2.0, "attention": 1.0}
    monkeypatch.setattr(native, "_verdict", lambda library: verdict)
    found = make_now()
    assert found.passes is not None and not found.passes.attends and "attention" not in found.why


@needs_compiler
def test_passes_that_are_no_faster_are_not_used(cache, monkeypatch) -> None:
    monkeypatch.setattr(native, "WORTH_IT", 1e6)
    found = make_now()
    assert found.passes is None and "which does not pay" in found.why


def test_without_a_compiler_or_with_a_broken_one_the_reason_is_told(cache, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(native, "compiler", lambda: "")
    assert make_now() == Found(None, "no C++ compiler")
    broken = tmp_path / "g++"
    broken.write_text(
        '#!/bin/sh\n[ "$1" = -dumpfullversion ] && echo 12 && exit\necho "it: error: no header" >&2\nexit 1\n'
    )
    broken.chmod(0o755)
    monkeypatch.setattr(native, "compiler", lambda: str(broken))
    assert make_now() == Found(None, "not compiled: it: error: no header")
    assert not list(cache.iterdir())
    monkeypatch.setattr(native, "compiler", lambda: str(tmp_path / "gone"))
    assert make_now().why.startswith("not compiled: ")


def test_what_cannot_be_loaded_is_told_as_that(cache, monkeypatch, tmp_path) -> None:
    foreign = tmp_path / "g++"
    lines = (
        '[ "$1" = -dumpfullversion ] && echo 12 && exit',
        'while [ "$1" != -o ]; do shift; done',
        'echo junk > "$2"',
    )
    foreign.write_text("\n".join(("#!/bin/sh", *lines)), encoding="utf-8")
    foreign.chmod(0o755)
    monkeypatch.setattr(native, "compiler", lambda: str(foreign))
    assert make_now() == Found(None, "not compiled: what was compiled cannot be loaded")
    assert not list(cache.iterdir())


def test_a_cache_that_cannot_be_written_costs_the_passes_alone(monkeypatch, tmp_path) -> None:
    (tmp_path / "tunesmith").write_text("a file where the folder would be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "compiler", lambda: "c++" if compiler() else "")
    assert make_now().passes is None


def test_the_recipe_and_the_device_overrule(monkeypatch) -> None:
    monkeypatch.setattr(native, "native_passes", lambda: Found(None, "asked"))
    assert wished(TrainSettings(), CPU).why == "asked"
    assert wished(TrainSettings(native="off"), CPU).line() == "PyTorch's operations: train.native is off"
    assert wished(TrainSettings(), torch.device("meta")).why == "native passes are for processors"


@needs_compiler
def test_steps_and_validations_take_them_and_nothing_else_does(tmp_path) -> None:
    seen: list[bool] = []
    loop = _loop(tmp_path / "run", [])
    inner = loop.learner.model.get_input_embeddings()
    inner.register_forward_hook(lambda *arguments: seen.append(in_use()))
    sampled: list[bool] = []
    loop.fit(lambda step: sampled.append(in_use()))
    assert seen and all(seen) and sampled == [False] and not in_use()
    assert choices(loop.run)["native"].value is True
    seen.clear()
    loop.update(loop.order.rows(0), 1e-3)
    assert seen and all(seen)


@needs_compiler
def test_a_run_keeps_what_it_began_with(tmp_path, monkeypatch) -> None:
    folder, events = tmp_path / "run", []
    _loop(folder, events).fit(lambda step: None)
    monkeypatch.setattr(native, "native_passes", lambda: Found(None, "no C++ compiler"))
    assert _loop(folder, events).native == Found(None, "no C++ compiler")
    assert [one.code for one in events if isinstance(one, Warning)] == ["no_native_passes"]

    without = tmp_path / "without"
    assert _loop(without, events).native.passes is None
    monkeypatch.undo()
    assert _loop(without, events).native == Found(None, "no C++ compiler")  # here they would be


@needs_compiler
def test_a_run_keeps_its_attention(tmp_path, monkeypatch) -> None:
    """What another verdict of the same machine says of attention changes no run that has begun."""
    found = native_passes()
    assert found.passes is not None
    without = Found(found.passes.without_attention(), "slower today")
    folder, events = tmp_path / "run", []
    monkeypatch.setattr(native, "native_passes", lambda: without)
    assert _loop(folder, events).native == without
    monkeypatch.undo()
    resumed = _loop(folder, events).native
    assert resumed.passes is not None and not resumed.passes.attends and resumed.why == "slower today"
    assert not [one for one in events if isinstance(one, Warning)]
    if not found.passes.attends:
        pytest.skip("the rest needs a processor that multiplies pairs of bf16 numbers")
    begun = tmp_path / "begun"
    kept = _loop(begun, events).native.passes
    assert kept is not None and kept.attends
    monkeypatch.setattr(native, "native_passes", lambda: without)
    assert _loop(begun, events).native == without
    assert ["native attention" in one.message for one in events if isinstance(one, Warning)] == [True]

"""Steps on a GPU are asked for the same bits each time; what cannot give them is named and let pass.

PyTorch's switch is the same on a processor, where `put_` is an operation that has no such form.
"""

from __future__ import annotations

import os

import pytest
import torch

from made_training import make_loop
from tunesmith.core.run import RunFolder
from tunesmith.methods.lora import LoRA
from tunesmith.training.choices import choices
from tunesmith.training.determinism import Determinism, not_exact, prepare_exact_products

GPU = torch.device("cuda")


def _put() -> None:
    torch.zeros(3).put_(torch.tensor([1]), torch.ones(1))


def test_operations_are_exact_within_steps_on_a_gpu_only(tmp_path):
    on, off = Determinism(GPU, print), Determinism(torch.device("cpu"), print)
    on.begin(RunFolder(tmp_path))
    with on.exact():
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
    with off.exact():
        assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory


def test_what_has_no_exact_form_is_named_once_and_remembered(tmp_path):
    run, events = RunFolder(tmp_path), []
    one = Determinism(GPU, events.append)
    one.begin(run)
    assert not_exact(run) == ""
    with pytest.raises(RuntimeError) as caught, one.exact():
        _put()
    assert not one.gives_up(RuntimeError("mat1 and mat2 cannot be multiplied"))
    assert one.gives_up(caught.value)
    assert [event.code for event in events] == ["not_deterministic"]
    assert events[0].message.endswith("put_ does not have a deterministic implementation")
    again = Determinism(GPU, events.append)
    again.begin(run)
    with again.exact():
        _put()
    assert not_exact(run) == "put_ does not have a deterministic implementation"


def test_a_run_goes_on_with_what_has_no_exact_form(tmp_path):
    """The step that failed is done again: the same run as one that never asked for it."""
    runs = {}
    for name in ("asked", "not asked"):
        torch.manual_seed(1)
        loop = runs[name] = make_loop(tmp_path / name, LoRA(dropout=0.3), "llama", "clm")
        loop.room.determinism = Determinism(GPU if name == "asked" else torch.device("cpu"), lambda event: None)
        loop.room.determinism.begin(loop.run)
        loop.learner.model.register_forward_hook(lambda *_: _put())
        loop.fit(lambda step: None)
    assert all(torch.equal(one, runs["asked"].tensors[key]) for key, one in runs["not asked"].tensors.items())
    assert not choices(runs["asked"].run)["deterministic"].value
    assert "deterministic" not in choices(runs["not asked"].run)


def test_cublas_is_asked_before_its_first_product(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is as it was afterwards
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    prepare_exact_products(torch.device("cpu"))
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    prepare_exact_products(GPU)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    prepare_exact_products(GPU)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"  # what the user has set stays

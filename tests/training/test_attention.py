"""Kernels of attention are asked for, kept by a run and told; what is there of GPUs is tried on a processor."""

from pathlib import Path

import pytest
import torch

from made_training import make_learner
from tunesmith.core.errors import UserError
from tunesmith.core.plugins import build
from tunesmith.core.run import RunFolder
from tunesmith.kernels.packed_attention import ON_GPU, give, kernel_of
from tunesmith.models.tiny import tiny
from tunesmith.steps.train_choices import kept_attention, settle_attention
from tunesmith.training.attention import check_kernel, packed, require_gpu
from tunesmith.training.choices import choices


def test_a_gpus_kernel_is_refused_on_a_cpu() -> None:
    require_gpu("auto", torch.device("cpu"))
    require_gpu("flex", torch.device("cuda"))
    with pytest.raises(UserError, match="there is no GPU") as caught:
        require_gpu("flex", torch.device("cpu"))
    assert caught.value.code == "no_gpu"


def test_the_head_names_the_kernel_and_another_one_is_refused() -> None:
    model, _ = tiny("llama", "causal")
    assert packed(model) == "packed"
    give(model, ON_GPU["varlen"])
    assert kernel_of(model) == "varlen"
    assert packed(model) == "packed, attention by varlen"
    check_kernel(model, "varlen", is_packed=True)
    check_kernel(model, "flex", is_packed=False)
    with pytest.raises(UserError, match="cannot go through flex here") as caught:
        check_kernel(model, "flex", is_packed=True)
    assert caught.value.code == "no_kernel"


def test_a_run_that_goes_on_keeps_its_kernel(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    learner = make_learner(build("methods", "lora"), "llama", build("objectives", "sft"), packing="auto")
    assert learner.layout.is_packed
    settle_attention(run, learner, "auto")
    assert kept_attention(run) is None  # a processor has one
    give(learner.model, ON_GPU["flex"])
    settle_attention(run, learner, "auto")
    give(learner.model, ON_GPU["varlen"])
    settle_attention(run, learner, "auto")  # as another machine would choose
    assert kept_attention(run) == "flex"
    assert "gives what the model gives" in choices(run)["attention"].why

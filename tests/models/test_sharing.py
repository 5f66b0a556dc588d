"""Several adapters on one base: each answers as it would alone, and the base as if there were none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tunesmith.core.plugins import build
from tunesmith.models.load import load_base, load_trained
from tunesmith.models.sharing import SharedBases
from tunesmith.models.source import base_record
from tunesmith.models.tiny import write_tiny
from tunesmith.recipe import ModelSettings


def write_adapter(folder: Path, base: Path, seed: int, **settings: Any) -> Path:
    method: Any = build("methods", {"name": "lora", **settings})
    loaded = load_base(ModelSettings(name=str(base)), "causal", trains_base_weights=False, precision="fp32", seed=1)
    attached = method.attach(loaded.model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in attached.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    method.save(attached, folder)
    card = {"format": 1, "task": "causal", "base": base_record(str(base)), "precision": "fp32"}
    (folder / "tunesmith.json").write_text(json.dumps(card))
    return folder


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=torch.tensor([[20, 30, 40]])).logits
    return found


def test_adapters_on_one_base_do_not_meet(tmp_path: Path) -> None:
    base = write_tiny(tmp_path / "base", "llama")
    one = write_adapter(tmp_path / "one", base, 1)
    two = write_adapter(tmp_path / "two", base, 2, rank=4, targets="attention")
    (base / "tunesmith.json").write_text(json.dumps({"format": 1, "task": "causal", "precision": "fp32"}))
    alone = [logits(load_trained(folder).model) for folder in (base, one, two)]
    bases = SharedBases()
    shared = [bases.load(folder).model for folder in (base, one, two)]
    for _ in range(2):  # in turns: an answer leaves no trace
        for model, expected in zip(shared, alone, strict=True):
            assert torch.equal(logits(model), expected)
    assert not torch.allclose(alone[1], alone[2], atol=1e-3)


def test_adapters_of_other_kinds_share_the_base_too(tmp_path: Path) -> None:
    base = write_tiny(tmp_path / "base", "llama")
    kinds = ("prompt_tuning", "prefix_tuning", "p_tuning", "llama_adapter", "lora")
    folders = [write_adapter(tmp_path / kind, base, seed, name=kind) for seed, kind in enumerate(kinds)]
    alone = [load_trained(folder).model for folder in folders]
    bases = SharedBases()
    shared = [bases.load(folder).model for folder in folders]
    assert len({model.get_input_embeddings().weight.data_ptr() for model in shared}) == 1
    for _ in range(2):
        for model, expected in zip(shared, alone, strict=True):
            assert torch.equal(logits(model), logits(expected))


def test_the_frozen_weights_are_the_same_memory(tmp_path: Path) -> None:
    base = write_tiny(tmp_path / "base", "llama")
    bases = SharedBases()
    models = [bases.load(write_adapter(tmp_path / name, base, 1)).model for name in ("one", "two")]
    tables = {model.get_input_embeddings().weight.data_ptr() for model in models}
    assert len(tables) == 1

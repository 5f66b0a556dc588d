"""Decoders are packed or padded as docs/reference/packing.md says, and the page is drawn from what was tried."""

from __future__ import annotations

import json

import pytest

from contracts.packing import (
    NOT_TRIED,
    OURS,
    PAGE,
    RESULTS,
    architectures,
    build,
    missing_layers,
    outcome,
    page,
    read_results,
)

SAMPLE = ("llama", "gemma3_text", "gpt2", "gpt_oss", "deepseek_v3", "gpt_neo", "falcon", "lfm2", "mamba", "jamba")


@pytest.mark.parametrize("kind", SAMPLE)
def test_a_type_is_what_the_page_says(kind: str) -> None:
    assert outcome(kind) == read_results()[kind]


def test_the_page_is_drawn_from_the_results() -> None:
    assert list(read_results()) == architectures(), "run `make matrix`"
    assert PAGE.read_text(encoding="utf-8") == page(json.loads(RESULTS.read_text(encoding="utf-8")))


def test_a_hybrid_without_its_own_layers_is_not_taken_for_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not missing_layers(build("lfm2"))
    monkeypatch.setattr("contracts.packing.SPECIAL", {"lfm2": {"layer_types": ["full_attention"] * 2}})
    assert missing_layers(build("lfm2")) == ["Lfm2ShortConv"]
    assert outcome("lfm2") == f"{NOT_TRIED}the tiny model has no Lfm2ShortConv"
    assert outcome("llama") == OURS

"""docs/encoders-or-decoders.md follows from its kept comparison."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_methods_page import report, row  # noqa: F401 - a fixture

from tunesmith.reports.classifiers_page import classifiers_page, main, pairs

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def whole(report: dict[str, Any]) -> dict[str, Any]:  # noqa: F811
    def one(name: str, value: float, against: tuple[float, float, float] | None, kind: str) -> dict[str, Any]:
        model = {"name": "tunesmith/base", "config": {"model_type": kind}}
        return row(name, value, against, model=model, against=name.replace("encoder", "decoder", 1))

    rows = [
        one("encoder, random weights", 0.70, (0.05, 0.02, 0.08), "bert"),
        one("decoder, random weights", 0.65, None, "llama"),
        one("encoder, pre-trained", 0.92, (-0.01, -0.03, 0.01), "bert"),
        one("decoder, pre-trained", 0.93, None, "llama"),
    ]
    return {**report, "name": "encoders_or_decoders", "rows": rows, "reference": "decoder, random weights"}


def test_each_pair_is_judged_by_its_own_difference(whole: dict[str, Any]) -> None:
    assert [kind for kind, _, _ in pairs(whole)] == ["random weights", "pre-trained"]
    page = classifiers_page(whole)
    assert "difference +5.0 [+2.0, +8.0]: the encoder is ahead beyond chance." in page
    assert "difference −1.0 [−3.0, +1.0]: they cannot be told apart." in page
    assert "random weights: encoder bert of 22.0 M parameters, decoder llama of 22.0 M parameters." in page
    assert "against its counterpart" in page


def test_a_decoder_can_be_ahead(whole: dict[str, Any]) -> None:
    whole["rows"][0]["against_reference"] = {"value": -0.05, "low": -0.08, "high": -0.02}
    assert "difference −5.0 [−8.0, −2.0]: the decoder is ahead beyond chance." in classifiers_page(whole)


def test_wrong_words_are_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "classifiers_page" in capsys.readouterr().err


def test_the_page_in_the_repository_is_what_the_result_gives() -> None:
    page, kept = ROOT / "docs" / "encoders-or-decoders.md", ROOT / "benchmarks/results/encoders_or_decoders.json"
    if not page.is_file():
        pytest.skip("docs/encoders-or-decoders.md is not made yet: see the head of reports/classifiers_page.py")
    assert page.read_text(encoding="utf-8") == classifiers_page(json.loads(kept.read_text(encoding="utf-8")))

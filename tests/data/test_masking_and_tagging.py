"""Hidden words by the paper's shares, and words that find their tokens again."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tunesmith.data.masking import hide, masked_features, masking_layout, num_hidden
from tunesmith.data.tagging import tag_pieces
from tunesmith.models.tiny import tiny_tokenizer
from tunesmith.objectives.base import IGNORED

TEXT = "the machine makes coffee and the user cleans the machine when the water tank is empty. "


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer("mask")


def test_of_the_chosen_tokens_80_percent_are_masked_10_replaced_and_10_stay(tokenizer: Any) -> None:
    layout = masking_layout(tokenizer)
    whole = tuple(tokenizer(TEXT * 4)["input_ids"])
    fates: Counter[str] = Counter()
    num_chosen = 0
    for draw in range(400):
        row = hide(whole, layout, draw=(1, draw, 7))
        for shown, label, token in zip(row.input_ids, row.labels, whole, strict=True):
            if label == IGNORED:
                assert shown == token
                continue
            assert label == token and token not in layout.special_ids
            num_chosen += 1
            fates["masked" if shown == tokenizer.mask_token_id else "kept" if shown == token else "replaced"] += 1
    words = sum(token not in layout.special_ids for token in whole)
    assert num_chosen == 400 * round(0.15 * words)
    assert fates["masked"] / num_chosen == pytest.approx(0.8, abs=0.01)
    assert fates["replaced"] / num_chosen == pytest.approx(0.1, abs=0.01)
    assert fates["kept"] / num_chosen == pytest.approx(0.1, abs=0.01)


def test_every_token_is_chosen_equally_often(tokenizer: Any) -> None:
    layout = masking_layout(tokenizer)
    whole = tuple(tokenizer("the machine makes coffee and tea")["input_ids"])
    rows = [hide(whole, layout, draw=(1, draw, 0)) for draw in range(3000)]
    times = [sum(row.labels[place] != IGNORED for row in rows) for place in range(len(whole))]
    words = times[1:-1]
    assert times[0] == times[-1] == 0  # <cls> and <sep>
    expected = 3000 * num_hidden(len(words), 0.15) / len(words)
    assert all(abs(count - expected) < 5 * expected**0.5 for count in words)


def test_equal_draws_hide_the_same_and_others_do_not(tokenizer: Any) -> None:
    layout = masking_layout(tokenizer)
    whole = tuple(tokenizer(TEXT)["input_ids"])
    assert hide(whole, layout, draw=(1, 2, 3)) == hide(whole, layout, draw=(1, 2, 3))
    seen = {hide(whole, layout, draw=draw).input_ids for draw in ((1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4))}
    assert len(seen) == 4


def test_a_long_text_goes_on_in_further_pieces_and_loses_nothing(tokenizer: Any) -> None:
    pieces = masked_features(TEXT * 5, tokenizer, max_length=32)
    assert len(pieces) > 3 and all(len(piece.input_ids) <= 32 for piece in pieces)
    special = set(tokenizer.all_special_ids)
    words = [token for piece in pieces for token in piece.whole_ids if token not in special]
    assert words == tokenizer(TEXT * 5, add_special_tokens=False)["input_ids"]
    assert all(piece.weight == max(1, round(0.15 * (len(piece.whole_ids) - 2))) for piece in pieces)


def test_a_text_without_words_has_nothing_to_learn(tokenizer: Any) -> None:
    (piece,) = masked_features("", tokenizer, max_length=32)
    assert piece.weight == 0


WORDS = ("Zoë", "O'Neil", "sees", "New York", "…", "東京", "x" * 30)


def test_each_word_begins_at_its_first_token(tokenizer: Any) -> None:
    (piece,) = tag_pieces(WORDS, tokenizer, max_length=500)
    assert len(set(piece.starts)) == len(WORDS) and list(piece.starts) == sorted(piece.starts)
    ends = (*piece.starts[1:], len(piece.input_ids) - 1)
    for word, start, end in zip(WORDS, piece.starts, ends, strict=True):
        assert tokenizer.decode(piece.input_ids[start:end]).strip() == word


def test_a_long_sentence_is_cut_between_words_and_none_is_lost(tokenizer: Any) -> None:
    words = tuple(f"word{n}" for n in range(50))
    pieces = tag_pieces(words, tokenizer, max_length=40)
    assert len(pieces) > 3 and all(len(piece.input_ids) <= 40 for piece in pieces)
    assert [piece.first_word + i for piece in pieces for i in range(len(piece.starts))] == list(range(50))
    assert all(start > 0 for piece in pieces for start in piece.starts)


def test_a_single_word_that_is_too_long_is_cut_and_counted(tokenizer: Any) -> None:
    (piece,) = tag_pieces(("ab" * 50,), tokenizer, max_length=20)
    assert (len(piece.input_ids), piece.starts) == (20, (1,))
    assert piece.num_cut > 0

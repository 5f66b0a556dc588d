"""Text as it comes: whole code points, no part of a stop string, nothing lost."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tunesmith.models.detokenize import TextStream
from tunesmith.models.tiny import tiny_tokenizer


def pushed(tokenizer: Any, ids: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    stream = TextStream(tokenizer, stop)
    texts = []
    for token in ids:
        texts.append(stream.push(token))
        if stream.is_stopped:
            return texts, stream
    return [*texts, stream.finish()], stream


def test_a_code_point_is_held_until_it_is_whole() -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer("é€😀").input_ids
    assert len(ids) == 9  # two, three and four bytes
    texts, _ = pushed(tokenizer, ids)
    assert texts == ["", "é", "", "", "€", "", "", "", "😀", ""]


@pytest.mark.parametrize("seed", range(20))
def test_pieces_joined_are_the_whole_text(seed: int) -> None:
    tokenizer = tiny_tokenizer()
    ids = random.Random(seed).choices(range(8, 320), k=60)  # mostly bytes that are no text at all
    assert "".join(pushed(tokenizer, ids)[0]) == tokenizer.decode(ids, skip_special_tokens=True)


def test_pieces_joined_are_the_whole_text_with_a_real_tokenizer(shared: Path) -> None:
    from transformers import AutoTokenizer

    for name in ("base-6m", "stories260k", "babyllama-1m"):
        tokenizer = AutoTokenizer.from_pretrained(shared / "models" / name)
        ids = tokenizer("Once upon a time,  there was a café — “naïve” 😀\n\nThe end.", add_special_tokens=False)
        assert "".join(pushed(tokenizer, ids.input_ids)[0]) == tokenizer.decode(ids.input_ids, skip_special_tokens=True)


def test_bytes_that_never_become_text_come_at_the_end() -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer("a€").input_ids[:-1]
    texts, _ = pushed(tokenizer, ids)
    assert texts == ["a", "", "", "\ufffd"]


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two three", (" two",), "one"),
        ("one two three", ("three", "two"), "one "),
        ("aab", ("ab",), "a"),
        ("xxab", ("abc",), "xxab"),
        ("hello", ("hello",), ""),
        ("abcabd", ("abd",), "abc"),
    ],
)
def test_text_ends_before_the_first_stop_string(text: str, stop: tuple[str, ...], expected: str) -> None:
    tokenizer = tiny_tokenizer()
    texts, stream = pushed(tokenizer, tokenizer(text).input_ids, stop)
    assert "".join(texts) == expected
    assert stream.is_stopped == (expected != text)


def test_no_piece_ever_holds_a_beginning_of_the_stop_string() -> None:
    tokenizer = tiny_tokenizer()
    texts, _ = pushed(tokenizer, tokenizer("say ENDING now").input_ids, ("ENDED",))
    so_far = ""
    for text in texts[:-1]:
        so_far += text
        assert not any(so_far.endswith("ENDED"[:n]) for n in range(1, 5)), so_far
    assert "".join(texts) == "say ENDING now"

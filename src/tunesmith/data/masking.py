"""Hide words of a text for masked language modelling, as a pure function of the tokens and of a draw.

Devlin et al. 2018 (arXiv:1810.04805, section 3.1 and appendix A.1): 15 % of the tokens are chosen; of these 80 %
become the mask, 10 % a random token and 10 % stay. As in the authors' code the number of chosen tokens is that share
rounded, at least one, so that a row weighs the same however it is drawn.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from tunesmith.objectives.base import IGNORED, Features, Layout

SHARE = 0.15
MASKED, REPLACED = 0.8, 0.1
"""Of the chosen tokens: hidden, and replaced by a random one; the rest stays."""


def masked_features(text: str, tokenizer: Any, *, max_length: int, share: float = SHARE) -> tuple[Features, ...]:
    """A text in pieces of at most `max_length` tokens, special ones included, each with words hidden.

    The draw is made from the piece's own tokens, so that a validation sees the same words hidden every time.
    A piece without a token of text has weight 0.
    """
    layout = masking_layout(tokenizer)
    encoded = tokenizer(
        text, truncation=True, max_length=max_length, return_overflowing_tokens=True, stride=0, verbose=False
    )
    pieces = (tuple(ids) for ids in encoded["input_ids"])
    return tuple(hide(piece, layout, draw=(_checksum(piece),), share=share) for piece in pieces)


def masking_layout(tokenizer: Any) -> Layout:
    """What hiding words needs to know of a tokenizer."""
    return Layout(
        False,
        tokenizer.pad_token_id,
        mask_token_id=-1 if tokenizer.mask_token_id is None else tokenizer.mask_token_id,
        num_tokens=len(tokenizer),
        special_ids=frozenset(tokenizer.all_special_ids),
    )


def hide(whole_ids: Sequence[int], layout: Layout, *, draw: Sequence[int], share: float = SHARE) -> Features:
    """The row with its words hidden by this draw; equal draws hide the same words in the same way."""
    assert layout.mask_token_id >= 0, layout
    ids = tuple(whole_ids)
    places = [place for place, token in enumerate(ids) if token not in layout.special_ids]
    if not places:
        return Features(ids, (IGNORED,) * len(ids), 0.0, whole_ids=ids)
    random = np.random.default_rng(list(draw))
    chosen = random.choice(places, size=num_hidden(len(places), share), replace=False)
    shown, labels = list(ids), [IGNORED] * len(ids)
    fates, others = random.random(len(chosen)), random.integers(layout.num_tokens, size=len(chosen))
    for place, fate, other in zip(chosen.tolist(), fates.tolist(), others.tolist(), strict=True):
        labels[place] = ids[place]
        if fate < MASKED:
            shown[place] = layout.mask_token_id
        elif fate < MASKED + REPLACED:
            shown[place] = other
    return Features(tuple(shown), tuple(labels), float(len(chosen)), whole_ids=ids)


def num_hidden(num_words: int, share: float) -> int:
    """How many of so many tokens are chosen: the share rounded, at least one."""
    return max(1, round(share * num_words))


def _checksum(ids: Sequence[int]) -> int:
    return zlib.crc32(array("q", ids).tobytes())

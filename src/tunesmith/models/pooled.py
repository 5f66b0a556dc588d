"""Fixed features of texts: the mean of a frozen model's last states over a text's tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tunesmith.data.pack import bucket
from tunesmith.models.anatomy import backbone
from tunesmith.models.load import Loaded
from tunesmith.objectives.base import padded

TOKENS_AT_ONCE = 4096


@torch.inference_mode()
def mean_states(
    loaded: Loaded, texts: Sequence[tuple[str, str | None]], on_progress: Callable[[int, int], None]
) -> NDArray[np.float32]:
    """The mean of the last block's states over the tokens of each text (or pair of texts), [N, D].

    Padding is left out of the mean, so a text's features do not depend on its neighbours.
    """
    model: Any = backbone(loaded.model)
    tokenizer = loaded.tokenizer
    encoded = [tokenizer(one, pair, truncation=True, max_length=loaded.context, verbose=False) for one, pair in texts]
    features: list[Any] = [None] * len(texts)
    done = 0
    for group in bucket([len(one["input_ids"]) for one in encoded], TOKENS_AT_ONCE):
        names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in encoded[group[0]]]
        fillers = {"input_ids": tokenizer.pad_token_id}
        inputs = {
            name: padded([encoded[place][name] for place in group], fillers.get(name, 0)).to(loaded.model.device)
            for name in names
        }
        states = model(**inputs).last_hidden_state.float()
        mask = inputs["attention_mask"].unsqueeze(-1)
        means = (states * mask).sum(1) / mask.sum(1)
        for place, row in zip(group, means.cpu().numpy(), strict=True):
            features[place] = row
        done += len(group)
        on_progress(done, len(texts))
    return np.stack(features)

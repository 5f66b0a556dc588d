"""One small forward pass of any model, to see what its layers do."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tunesmith.models.anatomy import embeddings, is_encoder_decoder


def probe_inputs(model: nn.Module) -> dict[str, Any]:
    """Four tokens that every vocabulary has, as arguments: [1, 4] for each text that the model reads.

    The last is the end of a text where the model knows one: classifiers of encoder-decoders look for it.
    """
    table: Any = embeddings(model).weight
    ids = torch.arange(2, 6, device=table.device)[None] % table.shape[0]
    config: Any = model.config
    if isinstance(config.eos_token_id, int):
        ids[0, -1] = config.eos_token_id
    return {"input_ids": ids, "decoder_input_ids": ids} if is_encoder_decoder(model) else {"input_ids": ids}


@torch.no_grad()
def probe(model: nn.Module) -> Any:
    """What the model gives for `probe_inputs` in evaluation mode; its mode is as before afterwards."""
    was_training = model.training
    model.eval()
    try:
        return model(**probe_inputs(model))
    finally:
        model.train(was_training)

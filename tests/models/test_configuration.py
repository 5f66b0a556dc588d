"""A configuration alone says what its model can do."""

from __future__ import annotations

import pytest

from tunesmith.models.configuration import context_length
from tunesmith.models.tiny import ARCHITECTURES, CONTEXT, tiny


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_context_is_how_far_positions_go(architecture: str) -> None:
    model, _ = tiny(architecture)
    assert context_length(model.config) == (512 if architecture == "t5" else CONTEXT)

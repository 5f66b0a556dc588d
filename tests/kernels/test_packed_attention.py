import pytest
import torch

from tunesmith.kernels import block_attention as module
from tunesmith.kernels.block_attention import block_attention
from tunesmith.kernels.packed_attention import (
    _flash_attention,
    packed_attention,
    packed_inputs,
    packing,
    reference_packed_attention,
    why_not_packed,
)
from tunesmith.models.tiny import tiny

LENGTHS = (3, 1, 7, 5)


@pytest.fixture
def small_blocks(monkeypatch):
    """Sets the block's size, so that short rows have several, and the longest example whose probabilities are kept."""

    def set_size(block: int, longest_kept: int = 1024) -> None:
        monkeypatch.setattr(module, "BLOCK", block)
        monkeypatch.setattr(module, "LONGEST_KEPT", longest_kept)
        module._later.cache_clear()

    yield set_size
    module._later.cache_clear()


def _states(heads: int, key_heads: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((1, heads, 16, 4), (1, key_heads, 16, 4), (1, key_heads, 16, 4))
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize(("block", "longest_kept"), [(4, 0), (4, 1024), (128, 1024)])
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2), (4, 1)])
def test_outputs_and_gradients_equal_the_block_diagonal_reference(heads, key_heads, block, longest_kept, small_blocks):
    small_blocks(block, longest_kept)
    results = []
    for is_mine in (True, False):
        states = _states(heads, key_heads)
        if is_mine:
            output, _ = packed_attention(torch.nn.Module(), *states, None, packed_lengths=LENGTHS)
        else:
            output = reference_packed_attention(*states, LENGTHS)
        output.square().sum().backward()
        results.append([output.detach(), *(state.grad for state in states)])
    for mine, reference in zip(*results, strict=True):
        torch.testing.assert_close(mine, reference)


def test_a_window_hides_what_lies_further_back():
    query, key, value = _states(2, 2)
    narrow, _ = packed_attention(torch.nn.Module(), query, key, value, None, packed_lengths=(16,), sliding_window=1)
    torch.testing.assert_close(narrow.transpose(1, 2), value)  # each token sees only itself


@pytest.mark.parametrize("block", [3, 4, 16])
@pytest.mark.parametrize("window", [None, 1, 2, 5, 16])
def test_block_and_flash_attention_are_one(window, block, small_blocks):
    small_blocks(block)
    results = []
    for is_mine in (True, False):
        query, key, value = _states(4, 2)
        if is_mine:
            output = block_attention(query[0], key[0], value[0], 0.3, window)[None]
        else:
            output = _flash_attention(query, key, value, dropout=0.0, scale=0.3, window=window)
        output.cos().sum().backward()
        results.append([output.detach(), query.grad, key.grad, value.grad])
    for mine, flash in zip(*results, strict=True):
        torch.testing.assert_close(mine, flash)


def test_queries_in_fp32_beside_values_in_bf16_train_under_autocast():
    query, key, value = (state.detach() for state in _states(4, 2))
    states = [query.requires_grad_(), key.requires_grad_(), value.bfloat16().requires_grad_()]
    with torch.autocast("cpu", torch.bfloat16):
        output = block_attention(*(state[0] for state in states), 0.3, None)
    output.float().square().sum().backward()
    exact = [state.detach().float().requires_grad_() for state in states]
    block_attention(*(state[0] for state in exact), 0.3, None).square().sum().backward()
    assert [state.grad.dtype for state in states] == [torch.float32, torch.float32, torch.bfloat16]
    for mine, reference in zip(states, exact, strict=True):
        torch.testing.assert_close(mine.grad.float(), reference.grad, atol=0.1, rtol=0.1)


def test_whole_attention_has_the_right_gradient_numerically():
    query, key, value = (state[0, :, :6].detach().double().requires_grad_() for state in _states(2, 1))
    assert torch.autograd.gradcheck(lambda q, k, v: block_attention(q, k, v, 0.5, None), (query, key, value))


def test_dropout_takes_the_flash_kernel():
    torch.manual_seed(0)
    states = [state.detach() for state in _states(2, 2)]
    dropped, _ = packed_attention(torch.nn.Module(), *states, None, dropout=0.9, packed_lengths=(16,))
    assert (dropped == 0).any()


def test_softcapping_is_refused():
    with pytest.raises(NotImplementedError, match="softcapping"):
        packed_attention(torch.nn.Module(), *_states(2, 2), None, packed_lengths=(16,), softcap=30.0)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3", "gpt_neox", "phi", "gemma", "gpt2"])
def test_packed_rows_give_what_they_give_alone(architecture):
    model, _ = tiny(architecture, "causal")
    model.eval()
    assert why_not_packed(model, model.config.vocab_size) == ""
    assert model.config._attn_implementation != "tunesmith_packed"  # and the model is left as it was


def test_a_model_that_ignores_the_borders_is_found_out():
    class Leaky(torch.nn.Module):
        """Sums over everything before, whatever the borders."""

        def __init__(self, config):
            super().__init__()
            self.config = config
            self.embedding = torch.nn.Embedding(50, 4)

        def forward(self, input_ids, **unused):
            from types import SimpleNamespace

            return SimpleNamespace(logits=self.embedding(input_ids).cumsum(1))

    model, _ = tiny("llama", "causal")
    assert why_not_packed(Leaky(model.config), 50) == "examples in one row would see each other"


def test_packing_ends_with_its_block_even_after_an_error():
    model, _ = tiny("llama", "causal")
    before = model.config._attn_implementation
    with pytest.raises(ZeroDivisionError), packing(model):
        raise ZeroDivisionError
    assert model.config._attn_implementation == before


def test_positions_restart_at_every_border():
    inputs = packed_inputs((2, 3))
    assert inputs["position_ids"].tolist() == [[0, 1, 0, 1, 2]]
    assert inputs["packed_lengths"] == (2, 3)

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters

from tunesmith.kernels import block_attention as module
from tunesmith.kernels import example_groups
from tunesmith.kernels.block_attention import block_attention
from tunesmith.kernels.example_groups import Attend, kept
from tunesmith.kernels.packed_attention import (
    NAME,
    attending,
    packed_inputs,
    reference_packed_attention,
    span_attention,
    why_not_packed,
)
from tunesmith.kernels.visible import borders, is_packing, packed_visible
from tunesmith.models.tiny import tiny

LENGTHS = (3, 1, 7, 5)


def _packed(states, lengths, *, left=-1, keeps=True, **settings):
    """Packed attention of examples of these lengths, with or without kept probabilities."""
    visible = packed_visible(lengths, left)
    visible = visible if keeps else visible._replace(num_kept=0)
    return span_attention(torch.nn.Module(), *states, visible, **settings)[0]


def _alone(query, key, value, attend):
    """Block attention of one row that is one example."""
    spans = torch.tensor([(0, 0, query.shape[2], 0, key.shape[2])])
    num_kept = kept(spans.tolist(), attend.left, attend.right)
    return block_attention(query, key, value, spans, attend, num_kept=num_kept).transpose(1, 2)


@pytest.fixture
def small_blocks(monkeypatch):
    """Sets the block's size, so that short rows have several, and the longest example whose probabilities are kept."""

    def set_size(block: int, longest_kept: int = 1024) -> None:
        for one in (module, example_groups):
            monkeypatch.setattr(one, "BLOCK", block)
            monkeypatch.setattr(one, "LONGEST_KEPT", longest_kept)
        monkeypatch.setattr(example_groups, "WHOLE_BLOCK", block)
        monkeypatch.setattr(example_groups, "STEP", 1)
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
        output = _packed(states, LENGTHS) if is_mine else reference_packed_attention(*states, LENGTHS)
        output.square().sum().backward()
        results.append([output.detach(), *(state.grad for state in states)])
    for mine, reference in zip(*results, strict=True):
        torch.testing.assert_close(mine, reference)


def test_a_window_hides_what_lies_further_back():
    query, key, value = _states(2, 2)
    narrow = _packed((query, key, value), (16,), left=0)
    torch.testing.assert_close(narrow.transpose(1, 2), value)  # each token sees only itself


@pytest.mark.parametrize("block", [3, 4, 16])
@pytest.mark.parametrize("window", [None, 1, 2, 5, 16])
def test_a_windows_values_and_gradients_are_pytorchs(window, block, small_blocks):
    small_blocks(block)
    results = []
    for is_mine in (True, False):
        query, key, value = _states(4, 2)
        if is_mine:
            output = _alone(query, key, value, Attend(0.3, -1 if window is None else window - 1))
        else:
            distance = torch.arange(16)[:, None] - torch.arange(16)[None, :]
            mask = (distance >= 0) & (distance < (window or 16))
            keys, values = (states.repeat_interleave(2, dim=1) for states in (key, value))
            output = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=0.3)
        output.cos().sum().backward()
        results.append([output.detach(), query.grad, key.grad, value.grad])
    for mine, flash in zip(*results, strict=True):
        torch.testing.assert_close(mine, flash)


def test_queries_in_fp32_beside_values_in_bf16_train_under_autocast():
    query, key, value = (state.detach() for state in _states(4, 2))
    states = [query.requires_grad_(), key.requires_grad_(), value.bfloat16().requires_grad_()]
    with torch.autocast("cpu", torch.bfloat16):
        output = _alone(*states, Attend(0.3))
    output.float().square().sum().backward()
    exact = [state.detach().float().requires_grad_() for state in states]
    _alone(*exact, Attend(0.3)).square().sum().backward()
    assert [state.grad.dtype for state in states] == [torch.float32, torch.float32, torch.bfloat16]
    for mine, reference in zip(states, exact, strict=True):
        torch.testing.assert_close(mine.grad.float(), reference.grad, atol=0.1, rtol=0.1)


def test_whole_attention_has_the_right_gradient_numerically():
    query, key, value = (state[:, :, :6].detach().double().requires_grad_() for state in _states(2, 1))
    assert torch.autograd.gradcheck(lambda q, k, v: _alone(q, k, v, Attend(0.5)), (query, key, value))


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3", "gpt_neox", "phi", "gemma", "gpt2"])
def test_packed_rows_give_what_they_give_alone(architecture):
    model, _ = tiny(architecture, "causal")
    model.eval()
    assert why_not_packed(model, model.config.vocab_size) == ""
    assert model.config._attn_implementation == NAME  # and the model keeps the attention that passed


def test_a_model_that_ignores_the_borders_is_found_out():
    class Leaky(torch.nn.Module):
        """Sums over everything before, whatever the borders."""

        def __init__(self, config):
            super().__init__()
            self.config = config
            self.embedding = torch.nn.Embedding(50, 4)

        def get_input_embeddings(self):
            return self.embedding

        def forward(self, input_ids, **unused):
            from types import SimpleNamespace

            return SimpleNamespace(logits=self.embedding(input_ids).cumsum(1))

    model, _ = tiny("llama", "causal")
    assert why_not_packed(Leaky(model.config), 50) == "examples in one row would see each other"


def test_borders_end_with_their_block_even_after_an_error():
    with pytest.raises(ZeroDivisionError), borders((2, 3)):
        raise ZeroDivisionError
    assert not is_packing()


def test_a_compiled_block_takes_packs_of_any_lengths_with_one_compilation():
    model, _ = tiny("llama", "causal")
    block = model.model.layers[0]
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(block.forward, fullgraph=True, dynamic=True, backend="aot_eager")
    for lengths in ((5, 8, 3), (9,), (200, 3)):
        positions, visible = packed_inputs(lengths)["position_ids"], packed_visible(lengths)
        states = torch.randn(1, sum(lengths), 32, requires_grad=True)
        angles = model.model.rotary_emb(states, positions)
        with attending(model):
            calls = (block.forward, compiled)
            plain, mine = (call(states, attention_mask=visible, position_embeddings=angles) for call in calls)
        torch.testing.assert_close(mine, plain)
        gradients = [torch.autograd.grad(output.square().sum(), states)[0] for output in (plain, mine)]
        torch.testing.assert_close(*gradients)
    assert counters["stats"]["unique_graphs"] == 1


def test_positions_restart_at_every_border():
    inputs = packed_inputs((2, 3))
    assert inputs["position_ids"].tolist() == [[0, 1, 0, 1, 2]]
    assert packed_visible((2, 3)).spans_N5.tolist() == [[0, 0, 2, 0, 2], [0, 2, 5, 2, 5], [0, 0, 0, 0, 0]]

"""What of a GPU's attention can be tried without one: choice, arguments, layouts, flex attention's masks."""

import warnings

import pytest
import torch
from torch.nn.attention import flex_attention as library

from tunesmith.kernels.example_groups import Attend
from tunesmith.kernels.gpu_attention import by_example, flash_attn, flex, gpu_attention, varlen
from tunesmith.kernels.gpu_kernels import KERNELS, Machine, Wanted, possible, why_not
from tunesmith.kernels.packed_attention import NAME, ON_GPU, attending, packed_inputs, why_not_packed
from tunesmith.kernels.plain_attention import plain_attention
from tunesmith.kernels.visible import Form, _made, borders, packed_visible
from tunesmith.kernels.visible_blocks import SIZE, visible_blocks
from tunesmith.models.tiny import tiny

LENGTHS = (3, 1, 130, 6)
H100 = Machine((9, 0), flash_attn=(2, 8), has_varlen=True, has_triton=True)
BARE = Machine((9, 0), has_varlen=True, has_triton=True)
LLAMA = Wanted(torch.bfloat16, 128, 128)


def _states(heads=4, key_heads=2, width=16, value_width=16):
    generator = torch.Generator().manual_seed(1)
    shapes = ((heads, width), (key_heads, width), (key_heads, value_width))
    return [torch.randn(1, h, sum(LENGTHS), d, generator=generator, requires_grad=True) for h, d in shapes]


def _visible(left=-1, right=0):
    """As a GPU gets it, on a processor."""
    ends = torch.tensor(LENGTHS).cumsum(0).tolist()
    spans = [(0, end - n, end, end - n, end) for n, end in zip(LENGTHS, ends, strict=True)]
    made = _made(spans, Form(left, right), "cpu", has_blocks=True)
    return made._replace(borders=torch.tensor([0, *ends], dtype=torch.int32))


def _mask(left=-1, right=0):
    """Which keys are seen [T, T], from the definition."""
    places, number = torch.arange(sum(LENGTHS)), torch.repeat_interleave(torch.arange(4), torch.tensor(LENGTHS))
    distance = places[:, None] - places[None, :]
    seen = number[:, None] == number[None, :]
    seen &= (distance <= left) | (left < 0)
    return seen & ((-distance <= right) | (right < 0))


def _with_gradients(output, inputs):
    return [output.detach(), *torch.autograd.grad(output.cos().sum(), inputs)]


class Recorder:
    """A kernel that notes what it is given and answers with the definition, row by row."""

    def __call__(self, query, key, value, *places, **settings):
        self.shapes = [tuple(states.shape) for states in (query, key, value)]
        self.dtypes = {states.dtype for states in (query, key, value)}
        self.places, self.settings = places, settings
        left, right = settings["window_size"]
        scale = settings.get("scale", settings.get("softmax_scale"))
        attend = Attend(scale, softcap=settings.get("softcap", 0.0))
        states = [states.transpose(0, 1)[None] for states in (query, key, value)]
        return plain_attention(*states, _mask(left, right), attend)[0]


@pytest.mark.parametrize(
    ("wanted", "machine", "best"),
    [
        (LLAMA, H100, "flash_attn"),
        (LLAMA, BARE, "varlen"),
        (LLAMA, Machine((9, 0), has_triton=True), "flex"),
        (LLAMA, Machine((9, 0)), "sdpa"),
        (LLAMA, Machine((9, 0), flash_attn=(2, 5), has_varlen=True), "varlen"),
        (LLAMA, Machine((7, 5), (2, 8), has_varlen=True, has_triton=True), "flex"),  # a T4
        (Wanted(torch.float32, 128, 128), H100, "flex"),
        (Wanted(torch.bfloat16, 128, 128, has_softcap=True), H100, "flash_attn"),
        (Wanted(torch.bfloat16, 128, 128, has_softcap=True), BARE, "flex"),
        (Wanted(torch.bfloat16, 128, 128, has_softcap=True, has_dropout=True), H100, "plain"),
        (Wanted(torch.bfloat16, 64, 64, has_sinks=True), H100, "flex"),
        (Wanted(torch.bfloat16, 64, 64, has_sinks=True), Machine((9, 0)), "plain"),
        (Wanted(torch.bfloat16, 64, 64, has_dropout=True), H100, "flash_attn"),
        (Wanted(torch.bfloat16, 64, 64, has_dropout=True), BARE, "sdpa"),
        (Wanted(torch.bfloat16, 192, 128), BARE, "varlen"),  # DeepSeek's, padded
        (Wanted(torch.bfloat16, 256, 256), BARE, "varlen"),
        (Wanted(torch.bfloat16, 256, 256), Machine((8, 9), has_varlen=True, has_triton=True), "flex"),
        (Wanted(torch.bfloat16, 512, 512), H100, "flex"),
        (Wanted(torch.bfloat16, 8, 8), Machine((9, 0), has_triton=True), "sdpa"),
    ],
)
def test_the_best_kernel_that_can(wanted, machine, best):
    found, reasons = possible([wanted], machine)
    assert found[0] == best
    assert {*found, *reasons} == set(KERNELS)
    assert all(reasons[kernel] == why_not(kernel, wanted, machine) for kernel in reasons)


def test_a_model_gets_what_all_of_its_layers_can():
    found, reasons = possible([LLAMA, Wanted(torch.bfloat16, 64, 64, has_sinks=True)], H100)
    assert found == ("flex", "plain")
    assert reasons["flash_attn"] == "flash-attention has no sinks"


def test_transformers_does_not_take_the_names_for_its_own_kernels():
    assert not any(word in name for name in ON_GPU.values() for word in ("flash", "flex_attention", "/"))
    assert NAME not in ON_GPU.values()


@pytest.mark.parametrize(("left", "right"), [(-1, 0), (4, 0), (-1, -1), (2, 2)])
@pytest.mark.parametrize("widths", [(16, 16), (12, 8)])
@pytest.mark.parametrize("kernel", [flash_attn, varlen])
def test_a_kernel_over_borders_is_called_right(kernel, widths, left, right):
    inputs, recorder = _states(4, 2, *widths), Recorder()
    attend = Attend(0.3, left, right, softcap=2.0 if kernel is flash_attn else 0.0)
    visible = _visible(left, right)
    mine = _with_gradients(kernel(*inputs, visible, attend, recorder), inputs)
    reference = _with_gradients(plain_attention(*inputs, _mask(left, right), attend), inputs)
    for one, other in zip(mine, reference, strict=True):
        torch.testing.assert_close(one, other)
    tokens = sum(LENGTHS)
    assert recorder.shapes == [(tokens, 4, 16), (tokens, 2, 16), (tokens, 2, 16)]  # heads are a multiple of 8 wide
    places = recorder.places or tuple(
        recorder.settings[name] for name in ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")
    )
    assert [place.tolist() for place in places[:2]] == [[0, 3, 4, 134, 140]] * 2
    assert all(place.dtype == torch.int32 for place in places[:2])
    assert places[2:] == (130, 130)
    assert all(type(place) is int for place in places[2:])


def test_what_only_one_of_them_is_told():
    inputs, visible = _states(), _visible()
    ours, theirs = Recorder(), Recorder()
    flash_attn(*inputs, visible, Attend(0.3, dropout=0.1), ours)
    assert {name: ours.settings[name] for name in ("dropout_p", "causal", "deterministic")} == {
        "dropout_p": 0.1,
        "causal": True,
        "deterministic": True,
    }
    varlen(*inputs, visible, Attend(0.3), theirs)
    assert theirs.settings == {"scale": 0.3, "window_size": (-1, 0), "enable_gqa": True}


def test_the_installed_varlen_attention_takes_these_arguments():
    real = pytest.importorskip("torch.nn.attention.varlen").varlen_attn
    with torch.device("meta"):
        inputs = [torch.empty(1, h, sum(LENGTHS), 16, dtype=torch.bfloat16) for h in (4, 2, 2)]
    visible = _visible()._replace(borders=torch.empty(5, dtype=torch.int32, device="meta"))
    output = varlen(*inputs, visible, Attend(0.3), real)
    assert output.shape == (1, sum(LENGTHS), 4, 16)


def test_queries_in_fp32_go_as_their_values_are():
    query, key, value = _states()
    recorder = Recorder()
    assert varlen(query, key, value.bfloat16(), _visible(), Attend(0.3), recorder).dtype == torch.bfloat16
    assert recorder.dtypes == {torch.bfloat16}


@pytest.fixture
def eager_flex(monkeypatch):
    """Flex attention uncompiled; PyTorch refuses gradients on a processor, though its reference form has them."""
    monkeypatch.setattr(library, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(library, "_validate_device", lambda *states: None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield library.flex_attention


@pytest.mark.parametrize(("left", "right"), [(-1, 0), (4, 0), (-1, -1), (2, 2)])
@pytest.mark.parametrize(("softcap", "has_sinks"), [(0.0, False), (1.5, False), (0.0, True)])
def test_flex_attention_is_the_definition(eager_flex, softcap, has_sinks, left, right):
    inputs = _states()
    sinks = torch.linspace(-1, 2, 4).requires_grad_() if has_sinks else None
    attend = Attend(0.3, left, right, softcap)
    leaves = [*inputs, *([sinks] if has_sinks else [])]
    mine = _with_gradients(flex(*inputs, _visible(left, right), attend, sinks, eager_flex), leaves)
    reference = _with_gradients(plain_attention(*inputs, _mask(left, right), attend, sinks), leaves)
    for one, other in zip(mine, reference, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", ["sdpa", "plain"])
@pytest.mark.parametrize(("left", "right"), [(-1, 0), (4, 0), (-1, -1), (2, 2)])
def test_example_by_example_is_the_definition(kernel, left, right):
    inputs, attend = _states(value_width=8), Attend(0.3, left, right, 1.5 if kernel == "plain" else 0.0)
    sinks = torch.linspace(-1, 2, 4) if kernel == "plain" else None
    mine = gpu_attention(kernel, *inputs, _visible(left, right), attend, sinks_H=sinks)
    reference = plain_attention(*inputs, _mask(left, right), attend, sinks)
    for one, other in zip(_with_gradients(mine, inputs), _with_gradients(reference, inputs), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("left", "right"), [(-1, 0), (200, 0), (-1, -1), (40, 300)])
@pytest.mark.parametrize("lengths", [(1,), (128,), (700, 3, 128, 200, 65), (5, 640), (1,) * 300])
def test_blocks_are_those_that_pytorch_finds_in_the_square(lengths, left, right):
    ends = torch.tensor(lengths).cumsum(0).tolist()
    spans = [(0, end - n, end, end - n, end) for n, end in zip(lengths, ends, strict=True)]
    mine = visible_blocks(spans, left, right, "cpu")
    theirs = library.create_block_mask(mine.mask_mod, 1, 1, ends[-1], ends[-1], "cpu", SIZE)
    assert torch.equal(mine.to_dense(), theirs.to_dense())
    assert torch.equal(mine.full_kv_num_blocks, theirs.full_kv_num_blocks)
    for one, other, counts in (
        (mine.kv_indices, theirs.kv_indices, mine.kv_num_blocks),
        (mine.full_kv_indices, theirs.full_kv_indices, mine.full_kv_num_blocks),
    ):
        for row, count in enumerate(counts[0, 0].tolist()):
            assert torch.equal(one[0, 0, row, :count], other[0, 0, row, :count])


def test_blocks_are_made_once_a_batch_for_flex_attention_only():
    assert packed_visible((3, 5)).blocks is None
    seen = []
    model, _ = tiny("llama", "causal")
    for block in model.model.layers:
        block.self_attn.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["attention_mask"].blocks), with_kwargs=True
        )
    with torch.no_grad(), attending(model, ON_GPU["flex"]), borders((3, 5)):
        model(input_ids=torch.zeros(1, 8, dtype=torch.long), **packed_inputs((3, 5)))
    assert len(seen) == len(model.model.layers)
    assert seen[0] is not None
    assert all(one is seen[0] for one in seen)


@pytest.mark.parametrize("architecture", ["gemma2", "gpt_oss"])
def test_a_model_with_softcap_or_sinks_writes_after_it_was_packed_as_before(architecture):
    model, _ = tiny(architecture, "causal")
    prompt = torch.arange(5, 25)[None]
    settings = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    with attending(model, "eager"):
        before = model.generate(prompt, **settings)
    assert why_not_packed(model, model.config.vocab_size) == ""
    after = model.generate(prompt, **settings)
    assert torch.equal(before.sequences, after.sequences)
    torch.testing.assert_close(torch.stack(before.logits), torch.stack(after.logits))


def test_plain_examples_share_nothing():
    inputs = _states()
    output = by_example(*inputs, _visible(), Attend(0.3), is_plain=True)
    (gradient,) = torch.autograd.grad(output[:, :3].sum(), inputs[2])
    assert torch.count_nonzero(gradient[:, :, :3])
    assert not torch.count_nonzero(gradient[:, :, 3:])

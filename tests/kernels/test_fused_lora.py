import pytest
import torch
from peft import LoraConfig, get_peft_model

from tunesmith.kernels.fused_lora import fuse_lora_layers, fused_lora_linear, reference_lora_linear
from tunesmith.models.tiny import tiny


def _terms(dtype: torch.dtype, has_bias: bool) -> list[torch.Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    x, weight, a, b = (
        torch.randn(shape, generator=generator).to(dtype) for shape in ((2, 5, 6), (7, 6), (3, 6), (7, 3))
    )
    bias = torch.randn(7, generator=generator).to(dtype) if has_bias else None
    return [x.requires_grad_(), weight, bias, a.requires_grad_(), b.requires_grad_()]


@pytest.mark.parametrize("has_bias", [False, True])
def test_outputs_and_gradients_equal_the_reference(has_bias):
    results = []
    for function in (fused_lora_linear, reference_lora_linear):
        x, weight, bias, a, b = _terms(torch.float64, has_bias)
        output = function(x, weight, bias, a, b, 0.5)
        output.sin().sum().backward()
        results.append([output.detach(), x.grad, a.grad, b.grad])
    for mine, reference in zip(*results, strict=True):
        torch.testing.assert_close(mine, reference)


def test_gradients_are_right_numerically():
    x, weight, bias, a, b = _terms(torch.float64, True)
    assert torch.autograd.gradcheck(lambda x, a, b: fused_lora_linear(x, weight, bias, a, b, 2.0), (x, a, b))


def test_an_input_without_gradient_still_trains_the_adapter():
    x, weight, bias, a, b = _terms(torch.float32, False)
    fused_lora_linear(x.detach(), weight, bias, a, b, 1.0).sum().backward()
    assert a.grad is not None and b.grad is not None


def _adapted(**settings):
    torch.manual_seed(0)
    model, _ = tiny("llama", "causal")
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False, **settings)
    return get_peft_model(model, config)


def test_a_whole_model_gives_pefts_outputs_and_gradients():
    ids = torch.arange(12).view(2, 6) + 5
    results = []
    for is_fused in (False, True):
        model = _adapted()
        if is_fused:
            assert fuse_lora_layers(model) == 7 * model.config.num_hidden_layers
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters() if p.requires_grad)])
    for plain, fused in zip(*results, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-6)


def test_disabling_and_merging_work_on_fused_layers():
    ids = torch.arange(6)[None] + 5
    model = _adapted().eval()
    with torch.no_grad(), model.disable_adapter():
        base = model(input_ids=ids).logits
    fuse_lora_layers(model)
    with torch.no_grad():
        adapted = model(input_ids=ids).logits
        with model.disable_adapter():
            torch.testing.assert_close(model(input_ids=ids).logits, base)
        assert not torch.allclose(adapted, base)
        torch.testing.assert_close(model.merge_and_unload()(input_ids=ids).logits, adapted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", [{"lora_dropout": 0.1}, {"use_dora": True}])
def test_layers_that_do_more_are_left_alone(settings):
    assert fuse_lora_layers(_adapted(**settings)) == 0

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tunesmith.kernels.fuse import Fused, fuse
from tunesmith.kernels.fused_lora import (
    Terms,
    fuse_lora_layers,
    fuse_shared_inputs,
    fused_lora_linear,
    linears,
    reference_lora_linear,
)
from tunesmith.kernels.instance_forward import plain_forwards
from tunesmith.models.probe import probe
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


def _terms_for(outputs: int, seed: int, *, has_lora: bool, trains: bool) -> Terms:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, requires_grad: bool = True) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_(requires_grad)

    weight, bias = draw(outputs, 4, requires_grad=trains), draw(outputs, requires_grad=trains)
    return Terms(weight, bias, draw(2, 4), draw(outputs, 2), 0.5) if has_lora else Terms(weight, bias)


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("used", [(0, 1, 2), (1,), (0, 2)])
def test_layers_of_one_input_have_the_references_gradients_used_or_not(trains, used):
    layers = [_terms_for(size, seed, has_lora=seed != 1, trains=trains) for seed, size in enumerate((5, 3, 6))]
    x = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(7)).requires_grad_()
    leaves = [x, *(one for layer in layers for one in layer[:4] if one is not None and one.requires_grad)]
    outputs = linears(x, layers)
    references = [layer.reference(x) for layer in layers]
    for one, other in zip(outputs, references, strict=True):
        torch.testing.assert_close(one, other)
    gradients = [
        torch.autograd.grad(sum(given[place].sin().sum() for place in used), leaves, allow_unused=True)
        for given in (outputs, references)
    ]
    for one, other in zip(*gradients, strict=True):
        if other is None:
            assert one is None or not one.any()
        else:
            torch.testing.assert_close(one, other)


def _share(model) -> int:
    fuse_lora_layers(model)
    return fuse_shared_inputs(model, lambda: probe(model))


def _gradients(model, ids) -> list[torch.Tensor]:
    model.zero_grad()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.requires_grad)]


def test_queries_keys_and_values_share_and_gate_and_up_do_and_give_pefts_gradients():
    ids = torch.arange(12).view(2, 6) + 5
    plain = _gradients(_adapted(), ids)
    model = _adapted()
    assert _share(model) == 2 * model.config.num_hidden_layers
    for mine, reference in zip(_gradients(model, ids), plain, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-6)


def test_a_layer_that_gets_another_tensor_computes_for_itself():
    model = _adapted()
    _share(model)
    attention = model.get_base_model().model.layers[0].self_attn
    one, other = torch.randn(2, 3, 32), torch.randn(2, 3, 32)
    expected = [type(layer).forward(layer, x) for layer, x in ((attention.q_proj, one), (attention.k_proj, other))]
    torch.testing.assert_close(attention.q_proj(one), expected[0])
    torch.testing.assert_close(attention.k_proj(other), expected[1])
    attention.q_proj(one)
    changed = one.mul_(2)  # the very same tensor with other contents
    torch.testing.assert_close(attention.k_proj(changed), type(attention.k_proj).forward(attention.k_proj, changed))


def test_nothing_is_held_once_every_layer_has_had_its_output():
    model = _adapted()
    _share(model)
    model(input_ids=torch.arange(6)[None] + 5)
    for layer in model.get_base_model().model.layers:
        assert layer.self_attn.q_proj.shared_input._outputs == {}
        assert layer.self_attn.q_proj.shared_input._x is None


def test_adapters_switch_and_merge_where_layers_share():
    ids = torch.arange(6)[None] + 5
    plain, model = _adapted().eval(), _adapted().eval()
    _share(model)
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, plain(input_ids=ids).logits)
        with model.disable_adapter(), plain.disable_adapter():
            torch.testing.assert_close(model(input_ids=ids).logits, plain(input_ids=ids).logits)
        model.merge_adapter()
        plain.merge_adapter()
        torch.testing.assert_close(model(input_ids=ids).logits, plain(input_ids=ids).logits)
        model.unmerge_adapter()
        with torch.inference_mode():
            model(input_ids=ids)


def test_all_kernels_together_give_the_models_own_gradients_and_come_off_again():
    ids = torch.arange(12).view(2, 6) + 5
    model = _adapted()
    plain = _gradients(model, ids)
    layers = model.config.num_hidden_layers
    assert fuse(model, lambda: probe(model)) == Fused(7 * layers, layers, layers, 2 * layers + 1, layers)
    for mine, reference in zip(_gradients(model, ids), plain, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-6)
    with plain_forwards(model):
        assert torch.equal(_gradients(model, ids)[0], plain[0])
    again = model.get_base_model().model.layers[0].mlp
    assert "forward" in vars(again)


def test_a_compiler_follows_all_of_them_through_a_whole_block():
    model = _adapted()
    fuse(model, lambda: probe(model))
    block = model.get_base_model().model.layers[0]
    trained = [p for p in block.parameters() if p.requires_grad]
    x = torch.randn(1, 5, 32)
    places = model.get_base_model().model.rotary_emb(x, torch.arange(5)[None])
    gradients = []
    for call in (block, torch.compile(block, backend="aot_eager", fullgraph=True)):
        gradients.append(torch.autograd.grad(call(x, position_embeddings=places).sin().sum(), trained))
    for mine, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-6)

"""Bases in 4 or 8 bits, on which adapters train (QLoRA, arXiv:2305.14314).

4 bits are NormalFloat4 in blocks of 64 with doubly quantised scales (sections 2 and 3); 8 bits are LLM.int8()
(arXiv:2208.07339), which rounds the inputs of each product too. Both are bitsandbytes', which has kernels for CUDA
and for the processor. Only the blocks' matrices are quantised: embeddings, norms, heads and biases stay as they are.
"""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn import Linear, Module, Parameter
from transformers.pytorch_utils import Conv1D

from tunesmith.core.errors import UserError
from tunesmith.methods.base import Method
from tunesmith.models.anatomy import head_modules, plain
from tunesmith.models.quiet import quiet

Quantize = Literal["none", "8bit", "4bit"]


def check_quantize(
    kind: Quantize, method: Method | None, *, trains_base_weights: bool, needs_library: bool = True
) -> None:
    """Refuse what cannot train on a quantised base, before any weight is loaded; a plan does not need the library.

    Raises:
        UserError: The method changes, saves or needs the base's own weights, or the library is not installed.
    """
    if kind == "none":
        return
    if trains_base_weights or (method is not None and not method.is_adapter):
        name = method.name if method is not None else "this method"
        raise UserError(
            f"{name} trains or saves the base's own weights, and a quantised base's have {kind[0]} bits.",
            code="quantized_base",
            remedy="Use an adapter such as `method: lora`, or set model.quantize=none.",
        )
    if method is not None:
        method.check_quantized(int(kind[0]))
    if needs_library and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"`model.quantize: {kind}` needs bitsandbytes, which is not installed.",
            code="not_installed",
            remedy="Run: pip install 'tunesmith[quantized]'",
        )


def quantization(kind: Quantize, auto_class: Any, config: Any, dtype: torch.dtype) -> Any:
    """transformers' configuration that quantises while loading; None for "none"."""
    if kind == "none":
        return None
    from transformers import BitsAndBytesConfig

    whole = _unquantized(auto_class, config)
    settings: dict[str, Any] = {"llm_int8_skip_modules": whole}  # the setting's name holds for 4 bits too
    if kind == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, **settings)  # type: ignore[no-untyped-call]
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        **settings,
    )


def keep_layout(model: Module) -> None:
    """Hold 4-bit weights in the layout that can be trained through.

    On processors with AVX512-BF16 bitsandbytes repacks them in place at the first answer; from then on products have
    no gradients and dequantising gives other numbers.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def keep_types(adapted: Module) -> None:
    """Let adapters' layers on a quantised base answer in the type of what they read.

    PEFT (0.21) has some answer in fp32 outside autocast ((IA)^3, PVeRA), and attention refuses such keys beside a query
    in bf16, a head such states.
    """
    for module in adapted.modules():
        kind = type(module).__module__
        if kind.startswith("peft.tuners.") and kind.endswith(".bnb"):
            module.register_forward_hook(_in_the_type_read)


def _in_the_type_read(module: Module, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    if torch.is_autocast_enabled(output.device.type):  # it gives all products one type itself
        return output
    return output.to(inputs[0].dtype)


def is_quantized(model: Module) -> bool:
    """Whether the base's matrices are 4 or 8 bits."""
    return bool(getattr(plain(model), "is_quantized", False))


def num_bits(model: Module) -> int:
    """Of the base's matrices where they are quantised: 8, or 4 (or some other few); 0 where they are plain."""
    if not is_quantized(model):
        return 0
    return 8 if getattr(plain(model), "is_loaded_in_8bit", False) else 4


def with_plain_base(model: Any) -> Any:
    """The adapter of `model` on its base, dequantised to fp32 as it is: what was rounded stays rounded.

    In 4 bits products were computed with these very values; in 8 bits their inputs were rounded too, so outputs differ.
    """
    from tunesmith.models.adapters import attach_adapter, save_adapter

    with tempfile.TemporaryDirectory() as folder, quiet():
        save_adapter(model, Path(folder))
        base = dequantized(_unwrapped(model))
        return attach_adapter(base, Path(folder), is_trainable=False)


def dequantized(model: Any) -> Any:
    """The model with plain fp32 matrices of the quantised values; its configuration forgets that it was quantised."""
    with quiet():
        opened = model.dequantize(dtype=torch.float32)
    opened.float()
    for flag in ("is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit"):
        setattr(opened, flag, False)
    if hasattr(opened.config, "quantization_config"):
        del opened.config.quantization_config
    _restore_conv1d(opened)
    return opened


def _restore_conv1d(model: Any) -> None:
    """GPT-2's matrices stand transposed in its files, and quantising had made ordinary ones of them."""
    with quiet(), torch.device("meta"):
        pattern = type(model)(model.config)
    for name, module in pattern.named_modules():
        found = model.get_submodule(name)
        if isinstance(module, Conv1D) and isinstance(found, Linear):
            restored = Conv1D(module.nf, module.nx)  # type: ignore[no-untyped-call]
            restored.weight = Parameter(found.weight.detach().T.contiguous(), requires_grad=False)
            restored.bias = found.bias
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, restored)


def _unwrapped(model: Any) -> Any:
    """The base without its adapters' layers; PEFT's `unload` refuses (IA)^3 in 8 bits."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper

    base = model.get_base_model()
    for name, module in list(base.named_modules()):
        parent, _, last = name.rpartition(".")
        if isinstance(module, BaseTunerLayer):
            setattr(base.get_submodule(parent), last, module.get_base_layer())
        elif isinstance(module, ModulesToSaveWrapper):
            setattr(base.get_submodule(parent), last, module.original_module)
    return base


def _unquantized(auto_class: Any, config: Any) -> list[str]:
    """Names of the head's layers; a random head must train, and the layer to the vocabulary is not among the blocks."""
    with quiet(), torch.device("meta"):
        model = auto_class.from_config(config)
    output = model.get_output_embeddings()
    names = {name for name, module in model.named_modules() if module is output}
    return sorted(names | set(head_modules(model)))

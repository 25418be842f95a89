"""PEFT and bitsandbytes with our configurations, on the library's model inside a level 1 model (`theirs.library`)."""

from typing import Any

import peft
import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from peft.tuners.lora import LoraLayer
from transformers.pytorch_utils import Conv1D

from shared_data.peft.adapted_model import initial_down_projection
from shared_data.peft.config import LoraConfig
from shared_data.peft.memory import memory_bytes


def inject_peft(theirs: Any, config: LoraConfig, seed: int) -> None:
    """`get_peft_model` with the initial numbers of the hand-written levels."""
    targets, whole = config.target_modules, list(config.modules_to_save)
    tied = theirs.config.tie_word_embeddings
    if whole and tied and "lm_head" not in whole:
        whole.append("lm_head")  # PEFT 0.21.2 sees that GPT-2's "wte" is tied only where both are named
    settings = peft.LoraConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        modules_to_save=whole or None,
        ensure_weight_tying=bool(whole) and tied,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in theirs.library.modules()),
        task_type="CAUSAL_LM",
    )
    theirs.library = peft.get_peft_model(theirs.library, settings)
    for path, module in theirs.library.get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            weight = module.lora_A["default"].weight
            weight.data.copy_(torch.from_numpy(initial_down_projection(path, *weight.shape, seed)))


def peft_parameters(theirs: Any, name: str = "default") -> dict[str, torch.nn.Parameter]:
    """PEFT's adapter parameters by our names."""
    found = {}
    for key, parameter in theirs.library.get_base_model().named_parameters():
        for part, ours in (
            ("lora_A", "lora_A.weight"),
            ("lora_B", "lora_B.weight"),
            ("lora_magnitude_vector", "magnitude"),
        ):
            if f".{part}.{name}.weight" in key:
                found[f"{key.split(f'.{part}.')[0]}.adapters.{name}.{ours}"] = parameter
        if f".modules_to_save.{name}." in key:
            found[key.replace(f".modules_to_save.{name}.", ".")] = parameter
    return found


def quantize_linear(layer: torch.nn.Module, block_size: int = 64, double: bool = True) -> Linear4bit:
    """bitsandbytes' layer with the weight of this one, [out, in]."""
    weight = layer.weight.data.T.contiguous() if isinstance(layer, Conv1D) else layer.weight.data
    quantized = Linear4bit(*reversed(weight.shape), layer.bias is not None, compute_dtype=torch.float32)
    quantized.bias = layer.bias
    options = {"blocksize": block_size, "compress_statistics": double, "quant_type": "nf4"}
    quantized.weight = Params4bit(weight, requires_grad=False, module=quantized, **options)
    # In evaluation it would compute in bfloat16 on processors that have it, and leave the codes in another order.
    quantized.support_avx512bf16_for_cpu = False
    return quantized.to(weight.device)  # the move quantizes


def quantize_library(theirs: Any) -> None:
    """bitsandbytes' layers in place of all linear layers but the output matrix."""
    for path, module in list(theirs.library.named_modules()):
        if isinstance(module, torch.nn.Linear | Conv1D) and path != "lm_head":
            theirs.library.set_submodule(path, quantize_linear(module))


def library_memory_bytes(theirs: Any) -> dict[str, int]:
    """`memory_bytes` of a model with bitsandbytes' layers, whose scales are no parameters."""
    states = [p.quant_state for p in theirs.parameters() if isinstance(p, Params4bit)]
    scales = sum(
        s.absmax.nbytes + (s.state2.absmax.nbytes + s.offset.nbytes if s.nested else 0) for s in states
    )
    memory = memory_bytes(theirs)
    return memory | {name: memory[name] + scales for name in ("weights", "total")}

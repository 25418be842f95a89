"""The decode step computes with the adapters too, merged or not, on a base of any precision: the tokens are the plain model's."""

from typing import Any

import numpy as np
import pytest
import torch

from shared_data.model_files.config import ModelConfig
from shared_data.peft.adapted_model import (
    lora_parameters,
    merge_lora,
    merged_state_dict,
    set_adapter,
    unmerge_lora,
)
from shared_data.peft.config import LoraConfig, QuantizationConfig
from tests.parity.model_cases import CASES, pair
from tests.parity.test_lora import adapter_values
from v2_handwritten.inference.generate import generate
from v2_handwritten.models.peft import lora, qlora
from v2_handwritten.models.transformer import Transformer
from v3_numpy_deep.inference.generate import generate as generate3
from v3_numpy_deep.models.peft import lora as lora3
from v3_numpy_deep.models.peft import qlora as qlora3
from v3_numpy_deep.models.transformer import Transformer as Transformer3

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12]]


@pytest.mark.parametrize("quantized", [False, True], ids=["plain base", "4-bit base"])
@pytest.mark.parametrize("case", ["gpt2", "llama GQA"])
def test_an_adapted_model_generates_what_it_computes(case: str, quantized: bool) -> None:
    ours, _ = pair(case, torch.float32)
    model = Transformer3(ModelConfig(**CASES[case]))
    model.load_state_dict({name: weight.numpy() for name, weight in ours.state_dict().items()})
    if quantized:
        qlora.quantize_model(ours, QuantizationConfig())
        qlora3.quantize_model(model, QuantizationConfig())
    settings: dict[str, Any] = {"r": 4, "target_modules": "all-linear", "use_dora": True}
    settings["modules_to_save"] = ("wte",) if case == "gpt2" else ("embed_tokens",)
    lora.inject_lora(ours, LoraConfig(**settings), seed=0)
    lora3.inject_lora(model, LoraConfig(**settings), seed=0)
    adapters = zip(lora_parameters(ours), lora_parameters(model), strict=True)
    for seed, (a, b) in enumerate(adapters):
        b.data[...] = adapter_values(b.shape, seed)
        a.data.copy_(torch.from_numpy(b.data))
    for level, write in ((ours.eval(), generate), (model.eval(), generate3)):
        cached = write(level, PROMPTS, eos_token_id=[], max_new_tokens=12)
        assert cached == write(level, PROMPTS, eos_token_id=[], max_new_tokens=12, use_cache=False)
        merge_lora(level)
        assert cached == write(level, PROMPTS, eos_token_id=[], max_new_tokens=12)
        unmerge_lora(level)
        set_adapter(level, None)
        assert cached != write(level, PROMPTS, eos_token_id=[], max_new_tokens=12)
    plain = Transformer(ours.config)
    set_adapter(ours, "default")
    plain.load_state_dict(merged_state_dict(ours))
    assert generate(plain.eval(), PROMPTS, eos_token_id=[], max_new_tokens=12) == generate(
        ours, PROMPTS, eos_token_id=[], max_new_tokens=12
    )
    assert np.isfinite(model(np.array([PROMPTS[0]])).data).all()

"""The decode step computes with the adapters too, merged or not, on a base of any precision: the tokens are the plain model's."""

from typing import Any

import numpy as np
import pytest
import torch

from shared_data.model_files.config import ModelConfig as ModelConfig3
from tests.parity.model_cases import CASES, pair
from tests.parity.test_lora import adapter_values
from v2_handwritten.finetune.peft import lora, qlora
from v2_handwritten.inference.generate import generate
from v2_handwritten.models.transformer import Transformer
from v3_numpy_deep.finetune.peft import lora as lora3
from v3_numpy_deep.finetune.peft import qlora as qlora3
from v3_numpy_deep.inference.generate import generate as generate3
from v3_numpy_deep.models.transformer import Transformer as Transformer3

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12]]


@pytest.mark.parametrize("quantized", [False, True], ids=["plain base", "4-bit base"])
@pytest.mark.parametrize("case", ["gpt2", "llama GQA"])
def test_an_adapted_model_generates_what_it_computes(case: str, quantized: bool) -> None:
    ours, _ = pair(case, torch.float32)
    model = Transformer3(ModelConfig3(**CASES[case]))
    model.load_state_dict({name: weight.numpy() for name, weight in ours.state_dict().items()})
    if quantized:
        qlora.quantize_model(ours, qlora.QuantizationConfig())
        qlora3.quantize_model(model, qlora3.QuantizationConfig())
    settings: dict[str, Any] = {"rank": 4, "target_modules": "all-linear", "use_dora": True}
    settings["modules_to_save"] = ("wte",) if case == "gpt2" else ("embed_tokens",)
    lora.inject_lora(ours, lora.LoraConfig(**settings), seed=0)
    lora3.inject_lora(model, lora3.LoraConfig(**settings), seed=0)
    adapters = zip(lora.lora_parameters(ours), lora3.lora_parameters(model), strict=True)
    for seed, (a, b) in enumerate(adapters):
        b.data[...] = adapter_values(b.shape, seed)
        a.data.copy_(torch.from_numpy(b.data))
    for level, write, module in ((ours.eval(), generate, lora), (model.eval(), generate3, lora3)):
        cached = write(level, PROMPTS, max_new_tokens=12)
        assert cached == write(level, PROMPTS, max_new_tokens=12, use_cache=False)
        module.merge_lora(level)
        assert cached == write(level, PROMPTS, max_new_tokens=12)
        module.unmerge_lora(level)
        module.set_adapter(level, None)
        assert cached != write(level, PROMPTS, max_new_tokens=12)
    plain = Transformer(ours.config)
    lora.set_adapter(ours, "default")
    plain.load_state_dict(lora.merged_state_dict(ours))
    assert generate(plain.eval(), PROMPTS, max_new_tokens=12) == generate(ours, PROMPTS, max_new_tokens=12)
    assert np.isfinite(model(np.array([PROMPTS[0]])).data).all()

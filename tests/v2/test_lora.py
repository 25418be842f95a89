"""What LoRA promises at level 2: the base stays frozen, evaluation does not drop, merging is exact, adapters take turns."""

from typing import Any

import pytest
import torch

from shared_data.errors import UserError
from shared_data.peft.adapted_model import (
    lora_parameters,
    merge_lora,
    merged_state_dict,
    set_adapter,
    unmerge_lora,
)
from shared_data.peft.config import LoraConfig
from shared_data.training.parameter_groups import parameter_groups
from tests.parity.arrays import array
from tests.parity.model_cases import batch, pair
from v2_handwritten.models.blocks.linear import Linear
from v2_handwritten.models.peft.lora import LoraLinear, inject_lora
from v2_handwritten.models.transformer import Transformer
from v2_handwritten.pretrain.components.optimizers import AdamW


def trained(case: str = "llama GQA", **values: Any) -> Transformer:
    """Level 2's model with an adapter that is not zero."""
    model, _ = pair(case)
    inject_lora(model, LoraConfig(**{"r": 4, "target_modules": "all-linear"} | values), seed=1)
    give_values(model)
    return model


def give_values(model: Transformer) -> None:
    """Trained-looking numbers for the active adapter."""
    with torch.no_grad():
        for seed, parameter in enumerate(lora_parameters(model)):
            parameter.copy_(torch.from_numpy(array(seed, *parameter.shape, scale=0.3)))
            parameter += parameter.ndim == 1  # lengths are about 1


@pytest.mark.parametrize("use_dora", [False, True], ids=["LoRA", "DoRA"])
@pytest.mark.parametrize("case", ["gpt2", "llama GQA"])
def test_a_new_adapter_changes_nothing_yet(case: str, use_dora: bool) -> None:
    model, _ = pair(case)
    ids = batch(case, T=9)["input_ids"]
    before = model(ids)
    inject_lora(model, LoraConfig(target_modules="all-linear", use_dora=use_dora), seed=0)
    torch.testing.assert_close(model(ids), before, rtol=0, atol=1e-14)


def test_only_the_active_adapter_trains_and_the_base_keeps_its_bits() -> None:
    """The optimizer is given every parameter, and decays weights: a base weight with a gradient would move."""
    model = trained(use_dora=True)
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = AdamW(parameter_groups(model, weight_decay=0.1), learning_rate=0.01)
    model.loss(**batch("llama GQA", T=9)).backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        moved = not torch.equal(parameter, before[name])
        assert moved == (".adapters.default." in name), name
        assert parameter.requires_grad == moved


def test_an_adapter_added_to_an_evaluated_model_does_not_drop_its_inputs() -> None:
    model, _ = pair("llama GQA")
    model.eval()
    inject_lora(model, LoraConfig(lora_dropout=0.5, target_modules="all-linear"), seed=0)
    give_values(model)
    ids = batch("llama GQA", T=9)["input_ids"]
    assert torch.equal(model(ids), model(ids))
    assert not any(module.training for module in model.modules())
    model.train()
    assert not torch.equal(model(ids), model(ids))


@pytest.mark.parametrize("use_dora", [False, True], ids=["LoRA", "DoRA"])
@pytest.mark.parametrize("case", ["gpt2", "llama MQA, biases, D > C/H"])
def test_merging_twice_is_merging_once_and_unmerging_gives_back_the_bits(case: str, use_dora: bool) -> None:
    model = trained(case, use_dora=use_dora)
    ids = batch(case, T=9)["input_ids"]
    adapted, before = model(ids), {name: p.clone() for name, p in model.named_parameters()}
    merge_lora(model)
    once = {name: weight.clone() for name, weight in merged_state_dict(model).items()}
    merge_lora(model)
    for name, weight in merged_state_dict(model).items():
        assert torch.equal(weight, once[name]), name
    torch.testing.assert_close(model(ids), adapted, rtol=0, atol=1e-12)
    plain = Transformer(model.config).double()
    plain.load_state_dict(once)
    assert torch.equal(plain(ids), model(ids)) or case != "gpt2"  # llama's fused q, k, v is another product
    torch.testing.assert_close(plain(ids), adapted, rtol=0, atol=1e-12)
    unmerge_lora(model)
    assert torch.equal(model(ids), adapted)
    assert {name: p.data_ptr() for name, p in model.named_parameters()}.keys() == before.keys()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_several_adapters_share_one_base() -> None:
    model = trained()
    ids = batch("llama GQA", T=9)["input_ids"]
    first = model(ids)
    inject_lora(model, LoraConfig(r=2, use_dora=True, target_modules=("q_proj",)), seed=2, name="second")
    give_values(model)
    second = model(ids)
    assert not torch.allclose(first, second)
    set_adapter(model, None)
    base, _ = pair("llama GQA")
    assert torch.allclose(model(ids), base(ids), rtol=0, atol=1e-14)
    assert not lora_parameters(model)
    set_adapter(model, "default")
    assert torch.equal(model(ids), first)
    set_adapter(model, "second")
    assert torch.equal(model(ids), second)
    assert all(".adapters.second." in name for name, p in model.named_parameters() if p.requires_grad)
    merge_lora(model)
    for refused in (
        lambda: set_adapter(model, "default"),
        lambda: inject_lora(model, LoraConfig(), 0, "third"),
    ):
        with pytest.raises(UserError, match="unmerge_lora"):
            refused()


@pytest.mark.parametrize("whole", [(), ("embed_tokens",)], ids=["frozen embedding", "whole embedding"])
def test_gradients_reach_the_adapters_through_gradient_checkpoints(whole: tuple[str, ...]) -> None:
    """The input of the first block requires no gradient by itself where the embeddings are frozen."""
    results = []
    for checkpointing in (False, True):
        model = trained(lora_dropout=0.3, modules_to_save=whole)
        model.gradient_checkpointing = checkpointing
        model.dropout_generator.manual_seed(7)
        model.loss(**batch("llama GQA", T=9)).backward()
        results.append([p.grad for p in lora_parameters(model)])
    for plain, checkpointed in zip(*results, strict=True):
        assert torch.equal(plain, checkpointed)


def test_mixed_precision_computes_the_adapter_in_its_type_too() -> None:
    model = trained().float()
    model.compute_dtype = torch.bfloat16
    layer = next(module for module in model.modules() if isinstance(module, LoraLinear))
    assert layer(torch.zeros(1, 32)).dtype == torch.bfloat16
    late, _ = pair("llama GQA", torch.float32)
    late.compute_dtype = torch.bfloat16
    inject_lora(late, LoraConfig(), seed=0)
    assert all(m.compute_dtype == torch.bfloat16 for m in late.modules() if isinstance(m, Linear))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target_modules": ("c_attn",)}, "q_proj"),
        ({"target_modules": ("lm_head",)}, "lm_head"),
        ({"r": 0}, "rank"),
        ({"lora_dropout": 1.0}, "lora_dropout"),
    ],
)
def test_impossible_settings_are_refused_with_a_remedy(values: dict[str, Any], message: str) -> None:
    model, _ = pair("llama GQA")
    with pytest.raises(UserError, match=message):
        inject_lora(model, LoraConfig(**values), seed=0)


def test_a_name_is_taken_once() -> None:
    model = trained()
    for name in ("default", "two.words", "", "keys"):
        with pytest.raises(UserError, match="choose"):
            inject_lora(model, LoraConfig(), seed=0, name=name)
    with pytest.raises(UserError, match="default"):
        set_adapter(model, "other")


def test_at_the_first_step_only_the_second_matrix_has_a_gradient() -> None:
    """The exercise of lora.md: A's gradient is a multiple of B, which is 0; after one step it is not."""
    model, _ = pair("llama GQA")
    inject_lora(model, LoraConfig(), seed=0)
    optimizer = AdamW(parameter_groups(model, weight_decay=0.0), learning_rate=0.01)
    gradients: list[dict[str, float]] = []
    for _ in range(2):
        optimizer.zero_grad()
        model.loss(**batch("llama GQA", T=9)).backward()
        largest = {n: p.grad.abs().max().item() for n, p in model.named_parameters() if p.grad is not None}
        gradients.append(largest)
        optimizer.step()
    for name in gradients[0]:
        assert (gradients[0][name] > 0) == ("lora_B" in name)
        assert gradients[1][name] > 0

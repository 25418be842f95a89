"""What level 1 adds to PEFT: new adapters take over the mode of the model, and one of two adapters trains."""

import pytest
import torch

from shared_data.errors import UserError
from tests.parity.model_cases import batch, pair
from v1_quick.finetune.peft.lora import (
    LoraConfig,
    inject_lora,
    lora_parameters,
    merge_lora,
    set_adapter,
    unmerge_lora,
)


def give_values(parameters: list[torch.nn.Parameter]) -> None:
    """Trained-looking numbers."""
    with torch.no_grad():
        for parameter in parameters:
            parameter.normal_(std=0.3)


def test_an_adapter_added_to_an_evaluated_model_does_not_drop_its_inputs() -> None:
    _, model = pair("llama GQA")
    model.eval()
    give_values(inject_lora(model, LoraConfig(dropout=0.5, target_modules="all-linear"), seed=0))
    ids = batch("llama GQA", T=9)["input_ids"]
    assert torch.equal(model(ids), model(ids))
    model.train()
    assert not torch.equal(model(ids), model(ids))


def test_adapters_take_turns_on_one_base_that_does_not_train() -> None:
    _, model = pair("llama GQA")
    ids = batch("llama GQA", T=9)["input_ids"]
    base = model(ids)
    give_values(inject_lora(model, LoraConfig(rank=2), seed=0))
    first = model(ids)
    give_values(inject_lora(model, LoraConfig(rank=4), seed=1, name="second"))
    assert {p.shape[0] for p in lora_parameters(model) if p.shape[1] == 32} == {4}
    assert not torch.allclose(model(ids), first)
    set_adapter(model, "default")
    assert torch.equal(model(ids), first)
    assert sum(p.requires_grad for p in model.parameters()) == len(lora_parameters(model)) == 8
    for _ in range(2):  # the second time, PEFT warns and does nothing
        merge_lora(model)
        torch.testing.assert_close(model(ids), first, rtol=0, atol=1e-5)
    unmerge_lora(model)
    torch.testing.assert_close(model(ids), first, rtol=0, atol=1e-5)
    set_adapter(model, None)
    torch.testing.assert_close(model(ids), base, rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="it has default, second"):
        set_adapter(model, "third")

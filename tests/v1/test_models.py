"""What level 1's models promise by themselves: they are the library's, and its Trainer and generate can have them."""

from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel, LlamaForCausalLM

from shared_data.settings import ModelSettings
from v1_quick.models.checkpoint import load_model, save_model
from v1_quick.models.config import ModelConfig
from v1_quick.models.transformer import Transformer


@pytest.mark.parametrize(("family", "cls"), [("gpt2", GPT2LMHeadModel), ("llama", LlamaForCausalLM)])
def test_a_model_from_settings_is_the_library_class_and_survives_saving(
    family: str, cls: type, tmp_path: Path
) -> None:
    settings = ModelSettings(model_type=family, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    model = Transformer(ModelConfig.from_settings(settings, 64, eos_token_id=5)).initialize(0).eval()
    assert isinstance(model.library, cls)
    assert model.library.generation_config.eos_token_id == 5
    save_model(model, tmp_path)
    ids = torch.arange(8).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path).eval()(ids), model(ids))


def test_loss_is_that_of_the_library_with_shifted_labels() -> None:
    settings = ModelSettings(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    model = Transformer(ModelConfig.from_settings(settings, 64)).initialize(0)
    ids = torch.randint(64, (2, 9))
    ours = model.loss(ids[:, :-1], ids[:, 1:])
    theirs = model.library(ids, labels=ids).loss  # the library shifts by itself
    torch.testing.assert_close(ours, theirs)

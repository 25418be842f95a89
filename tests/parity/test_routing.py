"""Which experts tokens are sent to: levels 2 and 3 against transformers' router, and the table that follows from it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from shared_data.errors import UserError
from shared_data.evaluation.expert_reading import read_experts
from shared_data.files import read_json
from shared_data.model_files.config import ModelConfig
from shared_data.story_world.world import StoryWorld
from tests.parity.arrays import integers
from tests.parity.stage_cases import StageRun, prepare
from tests.parity.training_cases import LEVELS
from v2_handwritten.data_pipeline.tokenizer.bpe_train import train_bpe
from v2_handwritten.inference.routing import chosen_experts as chosen_v2
from v2_handwritten.models.transformer import new_model as new_v2
from v3_numpy_deep.inference.routing import chosen_experts as chosen_v3
from v3_numpy_deep.models.transformer import new_model as new_v3

CONFIG = ModelConfig(
    model_type="qwen3_moe",
    vocab_size=300,
    hidden_size=32,
    num_hidden_layers=3,
    num_local_experts=6,
    mlp_only_layers=[1],
    max_position_embeddings=1024,
    initializer_range=0.3,  # so that no two logits of the router are nearly equal
    attention_dropout=0.5,
)


def test_all_levels_send_the_same_tokens_to_the_same_experts() -> None:
    ids = integers(0, CONFIG.vocab_size, 40).tolist()
    ours, deep = new_v2(CONFIG), new_v3(CONFIG)
    library = AutoModelForCausalLM.from_config(AutoConfig.for_model(**CONFIG.to_hf())).eval()
    library.load_state_dict(ours.state_dict())
    logits = library(torch.tensor([ids]), output_router_logits=True).router_logits
    expected = np.sort([of_layer.topk(2).indices.numpy() for of_layer in logits])
    assert expected.shape == (2, len(ids), 2)
    for model, chosen in ((ours, chosen_v2), (deep, chosen_v3)):
        model.train()  # dropout would change what later layers choose
        np.testing.assert_array_equal(np.sort(chosen(model, ids)), expected)
        assert model.training


def test_levels_2_and_3_have_the_same_table() -> None:
    stories = [story.text for story, _ in zip(StoryWorld().stories(1), range(3), strict=False)]
    tokenizer = train_bpe(stories, CONFIG.vocab_size)
    ours = read_experts(chosen_v2, new_v2(CONFIG), tokenizer, stories)
    deep = read_experts(chosen_v3, new_v3(CONFIG), tokenizer, stories)
    assert ours == deep
    assert [layer["layer"] for layer in ours["layers"]] == [0, 2]
    assert all(layer["bits"] > layer["bits_by_chance"] > 0 for layer in ours["layers"])


def test_pretraining_ends_with_the_same_table_at_levels_2_and_3(tmp_path: Path) -> None:
    prepared = prepare(tmp_path / "prepared")
    overrides = ("model.model_type=mixtral", "model.num_local_experts=4")
    readings = []
    for level in LEVELS:
        stage = StageRun(level, "pretrain", prepared, tmp_path / level, *overrides)
        metrics, reading = stage(), read_json(stage.folder / "experts.json")
        assert metrics["expert_bits"] == reading["layers"][0]["bits"] > 0
        readings.append(reading)
    two, three = readings
    assert two["stories"] == 3
    assert two["kinds"] == three["kinds"]
    # In float32, a token between two experts may go to either.
    assert two["layers"][0]["load"] == pytest.approx(three["layers"][0]["load"], abs=0.005)


@pytest.mark.parametrize(("new", "chosen"), [(new_v2, chosen_v2), (new_v3, chosen_v3)], ids=["v2", "v3"])
def test_a_text_longer_than_the_model_is_refused(new: object, chosen: object) -> None:
    with pytest.raises(UserError, match="1025 tokens are more than the model's 1024 positions"):
        chosen(new(CONFIG), [0] * 1025)  # type: ignore[operator]

"""Sizes of architectures, and whether two of them differ by more than chance, as in shared_data/comparison/comparison.md."""

import math
import statistics

import pytest

from shared_data.comparison.choices import read_choices
from shared_data.comparison.table import ABOVE_FLOOR, Row
from shared_data.model_files.config import ModelConfig
from shared_data.model_files.size import count_active_parameters, count_parameters
from shared_data.settings import load_settings
from tests.worked import agrees
from v2_handwritten.inference.kv_cache import bytes_per_token

PAGE = "shared_data/comparison/comparison.md"

CHOICES = read_choices(
    [],
    [
        "MHA: model.num_key_value_heads=4",
        "GQA: model.num_key_value_heads=2",
        "MQA: model.num_key_value_heads=1",
        "MLA: model.model_type=deepseek_v3 model.mlp_only_layers=[0,1,2]",
        "MoE: model.model_type=mixtral model.num_local_experts=8",
        "MoE of half the width: model.model_type=mixtral model.num_local_experts=8 model.intermediate_size=128",
    ],
)
MHA, MQA = [0.0212, 0.0226, 0.0219], [0.0221, 0.0240, 0.0226]  # by seed


def test_sizes_are_known_before_anything_is_trained() -> None:
    rows = []
    for choice in CHOICES:
        settings = load_settings("tiny", list(choice.assignments))
        config = ModelConfig.from_settings(settings.model, settings.tokenizer.vocab_size)
        rows.append([count_parameters(config), count_active_parameters(config), bytes_per_token(config)])
    agrees(PAGE, "choice | parameters | active | cache", rows)


def test_seed_by_seed_a_difference_is_surer() -> None:
    differences = [second - first for first, second in zip(MHA, MQA, strict=True)]
    rows = []
    for numbers in (MHA, MQA, differences):
        row = Row(CHOICES[0], [{ABOVE_FLOOR: number} for number in numbers], 0)
        rows.append([*numbers, row.mean(ABOVE_FLOOR), row.spread(ABOVE_FLOOR)])
    agrees(PAGE, "choice | seed 0 | seed 1 | seed 2 | mean | standard deviation", rows, digits=5)
    independent = math.sqrt((statistics.variance(MHA) + statistics.variance(MQA)) / 3)
    assert independent == pytest.approx(0.00070, abs=5e-6)
    assert statistics.stdev(differences) / math.sqrt(3) == pytest.approx(0.00021, abs=5e-6)

"""The language model: the class of transformers that the configuration names (`LlamaForCausalLM`, `MixtralForCausalLM`, …).

uv run python -c "from v1_quick.models.transformer import *; print(new_model(ModelConfig(num_hidden_layers=1), seed=0))"
"""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from shared_data.model_files.config import ModelConfig
from shared_data.model_files.initialization import initial_weights


def new_model(config: ModelConfig, seed: int, **options: Any) -> PreTrainedModel:
    """A model with the initial weights of levels 2 and 3: the library's rule, the numbers drawn from NumPy; `options` of `from_config`."""
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config.to_hf()), **options)
    weights = {name: torch.from_numpy(array) for name, array in initial_weights(config, seed)}
    model.load_state_dict(weights, strict=False)  # not strict: a tied lm_head.weight is not among them
    return model

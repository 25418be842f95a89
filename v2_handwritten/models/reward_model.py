"""A language model that grades instead of writing: the output matrix of V rows becomes one row, and its output a score.

The score of a text is computed at its last token, the only one that has seen all of it (Stiennon et al. 2020, section 3.4;
Ouyang et al. 2022, section 3.5). Computed at every token, the same model is PPO's value model. Which token is the last one
under padding is the trap of this file; `packing.py` finds it. Theory: reward_model.md.

Level 1: transformers' `GPT2ForSequenceClassification` and `LlamaForSequenceClassification` with one label; the parameters
here carry their names. Level 3: the same class over its own autograd.

    uv run python -c "import torch; from v2_handwritten.models.reward_model import *; print(RewardModel.from_transformer(Transformer(ModelConfig()), 0)(torch.zeros(2, 4, dtype=torch.int64)))"
"""

import copy

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shared_data.model_files.config import ModelConfig
from shared_data.model_files.initialization import initial_score
from v2_handwritten.models.blocks.linear import Linear, linear
from v2_handwritten.models.packing import last_positions, packed_hidden_states
from v2_handwritten.models.transformer import CausalModel, Transformer


class RewardModel(CausalModel):
    """The body of a language model, and `score`, the direction in its hidden states along which completions are better."""

    def __init__(self, config: ModelConfig, kernels: str = "fused") -> None:
        super().__init__(config, kernels)
        self.score = Linear(config.hidden_size, 1, bias=False)

    @classmethod
    def from_transformer(cls, model: Transformer, seed: int) -> "RewardModel":
        """A copy of the language model's body with a new, random `score`; the same seed gives the same at all levels."""
        reward_model = cls(model.config)
        name = "transformer" if model.config.model_type == "gpt2" else "model"
        setattr(reward_model, name, copy.deepcopy(model.body))
        reward_model.kernels = model.kernels
        with torch.no_grad():
            reward_model.score.weight.copy_(torch.from_numpy(initial_score(model.config, seed)))
        reward_model.score.to(model.lm_head.weight)
        return reward_model

    def scores(
        self,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Int[Tensor, "B T"] | Bool[Tensor, "B T"] | None = None,
        logits_to_keep: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T"]:
        """A score for every prefix of every text; those at padding mean nothing. With `logits_to_keep`, 0 at all other positions."""
        scores = self._score(packed_hidden_states(self, input_ids, attention_mask, logits_to_keep))
        if logits_to_keep is None:
            return scores
        return torch.zeros_like(logits_to_keep, dtype=scores.dtype).masked_scatter(logits_to_keep, scores)

    def forward(
        self,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Int[Tensor, "B T"] | Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B"]:
        """The score of each text, at its last real token; without a mask, all tokens are real."""
        last = last_positions(torch.ones_like(input_ids) if attention_mask is None else attention_mask)
        is_last = torch.arange(input_ids.shape[1], device=input_ids.device) == last[:, None]
        return self._score(packed_hidden_states(self, input_ids, attention_mask, is_last))

    def _score(self, hidden: Float[Tensor, "*rows C"]) -> Float[Tensor, "*rows"]:
        """In the type of the parameters, whatever `compute_dtype` is."""
        weight = self.score.weight
        return linear(hidden.to(weight.dtype), weight).squeeze(-1)

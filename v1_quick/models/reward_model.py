"""The reward model: transformers' `GPT2ForSequenceClassification` or `LlamaForSequenceClassification` with one label.

python -c "import torch; from v1_quick.models.reward_model import *; from transformers import GPT2Config; print(RewardModel.from_transformer(Transformer(GPT2Config(n_embd=8, n_head=2, n_layer=1)), 0)(torch.zeros(2, 4, dtype=torch.int64)))"
"""

import copy
import shutil
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel

from shared_data.errors import UserError
from v1_quick.models.checkpoint import _quiet
from v1_quick.models.transformer import Transformer


class RewardModel(nn.Module):
    """A language model's body with a score. `library` is the model of transformers, for trl's trainers."""

    def __init__(self, config: PreTrainedConfig, library: PreTrainedModel | None = None) -> None:
        super().__init__()
        self.config = copy.deepcopy(config)
        self.config.num_labels = 1
        self.library = (
            library if library is not None else AutoModelForSequenceClassification.from_config(self.config)
        )

    @classmethod
    def from_transformer(cls, model: Transformer, seed: int) -> "RewardModel":
        """A copy of the language model's body with a new, random `score`; the same seed gives the same at all levels."""
        reward_model = cls(model.config)
        reward_model.library.to(model.library.dtype)
        reward_model.library.base_model.load_state_dict(model.library.base_model.state_dict())
        with torch.no_grad():
            reward_model.library.score.weight.copy_(torch.from_numpy(initial_score(model.config, seed)))
        return reward_model

    def scores(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, read: Tensor | None = None
    ) -> Tensor:
        """[B, T]: a score for every prefix of every text; those at padding mean nothing. With `read`, 0 at all other positions."""
        position_ids = None if attention_mask is None else (attention_mask.cumsum(-1) - 1).clamp(min=0)
        output = self.library.base_model(
            input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        )
        scores = self.library.score(output.last_hidden_state).squeeze(-1)
        return scores if read is None else scores.masked_fill(~read, 0)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """[B]: the score of each text, read at its last real token.

        `self.library(input_ids, attention_mask)` takes the last token whose id is not `config.pad_token_id` instead: right as
        long as no real token has that id.
        """
        scores = self.scores(input_ids, attention_mask)
        if attention_mask is None:
            return scores[:, -1]
        T = input_ids.shape[1]
        last = (attention_mask * torch.arange(T, device=input_ids.device)).argmax(-1)
        return scores.gather(-1, last.unsqueeze(-1)).squeeze(-1)


def initial_score(config: PreTrainedConfig, seed: int) -> np.ndarray:
    """Random numbers for `score.weight` [1, C], from a stream of their own (initialization.py)."""
    generator = np.random.default_rng([seed, zlib.crc32(b"score.weight")])
    return generator.standard_normal((1, config.hidden_size), np.float32) * np.float32(
        config.initializer_range
    )


def save_reward_model(model: RewardModel, folder: Path, tokenizer_folder: Path | None = None) -> None:
    """Write the model as a Hugging Face folder, with a copy of the tokenizer's files."""
    with _quiet():
        model.library.save_pretrained(folder)
    if tokenizer_folder is not None:
        for path in sorted(Path(tokenizer_folder).glob("tokenizer*.json")):
            shutil.copy2(path, folder)


def load_reward_model(
    folder: Path, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> RewardModel:
    """Read a Hugging Face folder of a sequence classifier with one label."""
    try:
        with _quiet():
            library, report = AutoModelForSequenceClassification.from_pretrained(
                folder, dtype=dtype or "auto", output_loading_info=True, ignore_mismatched_sizes=True
            )
    except Exception as error:  # the library raises many kinds: missing file, corrupt header
        raise UserError(
            f"{folder} has no reward model that could be read ({error}); copy it again"
        ) from error
    misshapen = sorted(report["missing_keys"]) + [key for key, *_ in sorted(report["mismatched_keys"])]
    if misshapen:  # the library would go on with random numbers in their place
        raise UserError(f"{folder} has no {misshapen[0]} that fits; train a reward model with `reward`")
    if library.config.num_labels != 1:
        raise UserError(
            f"{folder} classifies into {library.config.num_labels} labels, a reward model has one; choose another folder"
        )
    return RewardModel(library.config, library).to(device)

"""The language model: transformers' `GPT2LMHeadModel` or `LlamaForCausalLM`, with the arguments that all levels share.

python -c "import torch; from v1_quick.models.transformer import *; from transformers import LlamaConfig; print(Transformer(LlamaConfig(hidden_size=64, num_attention_heads=4, num_hidden_layers=1)).initialize(0)(torch.zeros(1, 4, dtype=torch.int64)).shape)"
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Cache, PreTrainedConfig, PreTrainedModel

from v1_quick.models.blocks.cross_entropy import cross_entropy
from v1_quick.models.initialization import initial_weights


class Transformer(nn.Module):
    """A GPT-2 or Llama language model. `library` is the model of transformers, for its Trainer and `generate`."""

    def __init__(self, config: PreTrainedConfig, library: PreTrainedModel | None = None) -> None:
        super().__init__()
        self.config = config
        self.library = library if library is not None else AutoModelForCausalLM.from_config(config)

    def initialize(self, seed: int) -> "Transformer":
        """Set the initial weights of `initialization.py`; the same seed gives the same weights at all levels."""
        parameters = dict(self.library.named_parameters())
        with torch.no_grad():
            for name, weight in initial_weights(self.config, seed):
                parameters[name].copy_(torch.from_numpy(weight))
        return self

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: Cache | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, T, V] of the next token at every position; arguments as at the other levels."""
        if document_ids is not None:
            attention_mask = _document_mask(document_ids)
        # Without use_cache=False the library makes a cache in training too, and then no longer notices packed positions.
        output: Any = self.library(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=attention_mask,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return output.logits

    def loss(
        self,
        input_ids: Tensor,
        labels: Tensor,
        position_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
    ) -> Tensor:
        """Mean cross-entropy in nats. labels[t] is the token that follows input_ids[t]; -100 does not count."""
        logits = self(input_ids, position_ids, document_ids)
        return cross_entropy(logits.flatten(0, 1), labels.flatten())


def _document_mask(document_ids: Tensor) -> Tensor:
    """[B, 1, T, T], true where the library's attention may look: causal, within a document.

    When positions restart with each document, the library finds this mask by itself from `position_ids`.
    """
    return (document_ids[:, None, :, None] == document_ids[:, None, None, :]).tril()

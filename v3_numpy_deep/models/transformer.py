"""The language model: embeddings, a stack of blocks around the residual stream, a norm, the output matrix.

One class for both families, GPT-2 (Radford et al. 2019) and Llama (Touvron et al. 2023), which differ in their blocks only:

    x = x + attention(norm(x));   x = x + feed_forward(norm(x))

Parameters carry Hugging Face's names, so `state_dict()` is that of transformers' class. Llama's relatives (shared_data/model_files/families.py)
are its blocks with other parts.

Level 1 builds those library classes. Level 2: the same classes over torch, with mixed precision and gradient checkpointing.

    uv run python -c "import numpy as np; from v3_numpy_deep.models.transformer import *; print(Transformer(ModelConfig()).initialize(0)(np.zeros((1, 4), int)).shape)"
"""

import copy
import math
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int

from shared_data.errors import UserError
from shared_data.model_files.config import ModelConfig
from shared_data.model_files.initialization import initial_weights
from shared_data.model_files.rope import rotary_frequencies, rotary_scale
from v3_numpy_deep.autograd import Array, Module, ModuleList, Tensor
from v3_numpy_deep.autograd.kernels import KERNELS, kernel
from v3_numpy_deep.models.blocks.attention import Cache, SharedInputs
from v3_numpy_deep.models.blocks.attention_mask import AttentionMask
from v3_numpy_deep.models.blocks.cross_entropy import IGNORE_INDEX, linear_cross_entropy, soft_capped
from v3_numpy_deep.models.blocks.dropout import dropout
from v3_numpy_deep.models.blocks.embeddings import PositionEmbedding, TokenEmbedding
from v3_numpy_deep.models.blocks.linear import Linear
from v3_numpy_deep.models.blocks.mixture_of_experts import Routing, load_balancing_loss
from v3_numpy_deep.models.blocks.normalization import LayerNorm
from v3_numpy_deep.models.blocks.rope import rotary_tables
from v3_numpy_deep.models.blocks.transformer_block import Gpt2Block, LlamaBlock, residual_norm
from v3_numpy_deep.models.packing import Packing
from v3_numpy_deep.models.sharding import loss_in_threads


class Gpt2Body(Module):
    """GPT-2 without its output matrix; the attribute names are those of its checkpoints."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.wte = TokenEmbedding(config.vocab_size, config.hidden_size)
        self.wpe = PositionEmbedding(config.max_position_embeddings, config.hidden_size)
        self.h = ModuleList(Gpt2Block(config, index) for index in range(config.num_hidden_layers))
        self.ln_f = LayerNorm(config.hidden_size, config.layer_norm_epsilon)
        self.dropout = config.embd_pdrop

    def forward(
        self, input_ids: Int[Array, "B T"], position_ids: Int[Array, "#B T"], shared: SharedInputs
    ) -> Float[Tensor, "*rows C"]:
        """Final hidden states."""
        x = self.wte(input_ids) + self.wpe(position_ids)
        x = dropout(x, self.dropout, self.training, shared.generator)
        for block in self.h:
            x = block(x, shared)
        return self.ln_f(x)


class LlamaBody(Module):
    """Llama without its output matrix; the attribute names are those of its checkpoints."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        scale = math.sqrt(config.hidden_size) if config.scale_embeddings else None
        self.embed_tokens = TokenEmbedding(config.vocab_size, config.hidden_size, scale)
        self.layers = ModuleList(LlamaBlock(config, index) for index in range(config.num_hidden_layers))
        self.norm = residual_norm(config)
        self.config = config
        self.frequencies, self.rotary_scale = rotary_frequencies(config), rotary_scale(config)

    def forward(
        self, input_ids: Int[Array, "B T"], position_ids: Int[Array, "#B T"], shared: SharedInputs
    ) -> Float[Tensor, "*rows C"]:
        """Final hidden states."""
        x = self.embed_tokens(input_ids)
        frequencies = self.frequencies
        if self.config.has_dynamic_rope:
            frequencies = rotary_frequencies(self.config, int(position_ids.max()) + 1)
        shared.rotary = rotary_tables(frequencies, position_ids, x.dtype.type, self.rotary_scale)
        for block in self.layers:
            x = block(x, shared)
        return self.norm(x)


class CausalModel(Module):
    """What a language model and a reward model have in common: the body, and how its forward pass is computed.

    `kernels`: "plain" or "fused" (autograd/kernels.py). `dropout_generator`: draws all dropout masks; its state belongs to the
    training state.
    """

    def __init__(self, config: ModelConfig, kernels: str = "fused") -> None:
        super().__init__()
        self.config = config
        self.dropout_generator = np.random.default_rng(0)
        # What `loss` adds; the training engine sets it. With a dense indexer, attention reads everything, and indexers learn from that.
        self.balances_experts, self.trains_indexers = config.output_router_logits, False
        self.dense_indexer = False
        # Of the last training pass: tokens sent to each expert, by layer.
        self.expert_loads: Any = []
        if config.model_type == "gpt2":
            self.transformer = Gpt2Body(config)
        else:
            self.model = LlamaBody(config)
        self.kernels = kernels

    @property
    def body(self) -> Gpt2Body | LlamaBody:
        """The model without its output matrix, of either family."""
        return self.transformer if self.config.model_type == "gpt2" else self.model

    @property
    def token_embedding(self) -> TokenEmbedding:
        """The token embedding of either family."""
        return self.transformer.wte if self.config.model_type == "gpt2" else self.model.embed_tokens

    @property
    def kernels(self) -> str:
        """Which version of each formula the blocks compute."""
        return self._kernels

    @kernels.setter
    def kernels(self, choice: str) -> None:
        if choice not in KERNELS:
            raise UserError(f"level 3 has no kernels {choice!r}; choose one of {', '.join(KERNELS)}")
        self._kernels = choice
        modules: Iterator[Any] = self.body.modules()
        for module in modules:
            if hasattr(module, "kernels"):
                module.kernels = choice

    def hidden_states(
        self,
        input_ids: Int[Array, "B T"],
        position_ids: Int[Array, "#B T"] | None = None,
        packing: Packing | None = None,
        cache: Cache | None = None,
        attention_mask: Int[Array, "B S"] | Bool[Array, "B S"] | None = None,
        logits_to_keep: Bool[Array, "B T"] | None = None,
        routings: list[Routing] | None = None,
        indexer_losses: list[Tensor] | None = None,
    ) -> Float[Tensor, "*rows C"]:
        """The residual stream after the last norm, which the output matrix reads. Arguments as of `Transformer.forward`.

        With `logits_to_keep`, only the states at these positions, as rows [N, C]: the last block computes no other. Each layer
        of experts adds its routing to `routings`, each indexer what it has to learn to `indexer_losses`.
        """
        T = input_ids.shape[1]
        past = 0 if cache is None else cache.length
        tokens = past + T
        if attention_mask is not None and position_ids is not None:  # padding takes no position
            tokens = int(position_ids.max()) + 1
        if tokens > self.config.max_length:
            raise UserError(
                f"{tokens} tokens are more than the model's {self.config.max_length} positions; shorten the "
                "text or use a model with a larger max_position_embeddings"
            )
        if position_ids is None:
            position_ids = np.arange(past, past + T)[None]
        shared = SharedInputs(
            mask=AttentionMask(T, past + T, attention_mask, packing),
            cache=cache,
            generator=self.dropout_generator if self.training else None,
            logits_to_keep=logits_to_keep,
            routings=routings,
            indexer_losses=indexer_losses,
            dense_indexer=self.dense_indexer and self.training,
        )
        return self.body(input_ids, position_ids, shared)


class Transformer(CausalModel):
    """A language model of any family (shared_data/model_files/families.py)."""

    def __init__(self, config: ModelConfig, kernels: str = "fused") -> None:
        super().__init__(config, kernels)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Make the output matrix the token embedding itself, where the configuration says so (Press & Wolf 2017)."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.token_embedding.weight

    def initialize(self, seed: int) -> "Transformer":
        """Set the initial weights of `initialization.py`; the same seed gives the same weights at all levels."""
        self.load_state_dict(dict(initial_weights(self.config, seed)), strict=False)
        self.dropout_generator = np.random.default_rng(seed)
        return self

    def forward(
        self,
        input_ids: Int[Array, "B T"],
        position_ids: Int[Array, "#B T"] | None = None,
        packing: Packing | None = None,
        cache: Cache | None = None,
        attention_mask: Int[Array, "B S"] | Bool[Array, "B S"] | None = None,
    ) -> Float[Tensor, "B T V"]:
        """Logits of the next token at every position.

        `packing`: tokens see only tokens of their own text; `position_ids` then restart with each document.
        `cache`: the tokens follow those it holds, S = cached + T. `attention_mask`: 0 marks padding among the S keys.
        Raises `UserError` when the sequence is longer than the model's positions.
        """
        return self.logits(self.hidden_states(input_ids, position_ids, packing, cache, attention_mask))

    def logits(self, hidden: Float[Tensor, "*rows C"]) -> Float[Tensor, "*rows V"]:
        """What the output matrix reads from hidden states; soft-capped where the configuration says so."""
        return soft_capped(self.lm_head(hidden), self.config.final_logit_softcapping)

    @loss_in_threads
    def loss(
        self,
        input_ids: Int[Array, "B T"],
        labels: Int[Array, "B T"],
        position_ids: Int[Array, "#B T"] | None = None,
        packing: Packing | None = None,
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy in nats. labels[t] is the token that follows input_ids[t]; -100 does not count.

        In training mode, with the load-balancing loss where `balances_experts` is set, and the indexers' loss where `trains_indexers` is.
        """
        counted = labels != IGNORE_INDEX
        routings: list[Routing] | None = [] if self.training and self.config.has_sparse_layers else None
        indexer_losses: list[Tensor] | None = [] if self.training and self.trains_indexers else None
        balanced = routings is not None and self.balances_experts
        keep = None if balanced or counted.all() else counted  # experts are balanced over all tokens
        hidden = self.hidden_states(
            input_ids, position_ids, packing, None, None, keep, routings, indexer_losses
        )
        rows = hidden.reshape(-1, hidden.shape[-1])
        targets = labels.reshape(-1) if keep is None else labels[keep]
        loss = kernel(self.kernels, linear_cross_entropy)(
            rows, self.lm_head.weight, targets, IGNORE_INDEX, self.config.final_logit_softcapping
        )
        if indexer_losses:
            loss = loss + sum(indexer_losses) / len(indexer_losses)
        return loss if routings is None else self._with_balance(loss, routings)

    def _with_balance(self, loss: Float[Tensor, ""], routings: list[Routing]) -> Float[Tensor, ""]:
        """Remember how the experts were used, and add the load-balancing loss where it is wanted."""
        E = self.config.num_local_experts
        self.expert_loads = np.stack([np.bincount(r.experts.reshape(-1), minlength=E) for r in routings])
        if not self.balances_experts:
            return loss
        return loss + self.config.router_aux_loss_coef * load_balancing_loss(routings, E)


def new_model(config: ModelConfig, seed: int = 0, kernels: str = "fused") -> Transformer:
    """A language model with initial weights; the same seed gives the same weights at all levels."""
    return Transformer(config, kernels).initialize(seed)


M = TypeVar("M", bound=CausalModel)


def frozen_copy(model: M) -> M:
    """A reference model: the same weights in memory of their own, without gradients and without dropout.

    Only assigning the model to a second name would train the reference along with the policy: every log-ratio then stays
    0 and the loss never moves.
    """
    frozen = copy.deepcopy(model).eval()
    for parameter in frozen.parameters():
        parameter.requires_grad = False
    return frozen

"""The language model: embeddings, a stack of blocks around the residual stream, a norm, the output matrix.

One class for both families, GPT-2 (Radford et al. 2019) and Llama (Touvron et al. 2023), which differ in their blocks only:

    x = x + attention(norm(x));   x = x + feed_forward(norm(x))

Parameters carry Hugging Face's names, so `state_dict()` is a checkpoint of `GPT2LMHeadModel` or `LlamaForCausalLM`.

Level 1 builds those library classes. Level 2: the same classes over torch, with kernels, mixed precision and activation
checkpointing to choose.

    python -c "import numpy as np; from v3_numpy_deep.models.transformer import *; print(Transformer(ModelConfig()).initialize(0)(np.zeros((1, 4), int)).shape)"
"""

import numpy as np
from jaxtyping import Bool, Float, Int

from shared_data.errors import UserError
from shared_data.model_files.config import ModelConfig
from shared_data.model_files.initialization import initial_weights
from v3_numpy_deep.autograd import Array, Module, ModuleList, Tensor
from v3_numpy_deep.autograd.fused.attention import document_tiles, plan_tiles
from v3_numpy_deep.autograd.memory import keep_freed_memory
from v3_numpy_deep.autograd.parallel import available_threads, cut_documents, data_parallel, shards
from v3_numpy_deep.models.blocks.attention import (
    Cache,
    Gpt2Attention,
    LlamaAttention,
    SharedInputs,
    document_mask,
    padding_mask,
)
from v3_numpy_deep.models.blocks.cross_entropy import IGNORE_INDEX, linear_cross_entropy
from v3_numpy_deep.models.blocks.dropout import dropout
from v3_numpy_deep.models.blocks.embeddings import PositionEmbedding, TokenEmbedding
from v3_numpy_deep.models.blocks.feed_forward import Gpt2FeedForward, LlamaFeedForward
from v3_numpy_deep.models.blocks.linear import Linear
from v3_numpy_deep.models.blocks.normalization import LayerNorm, RMSNorm
from v3_numpy_deep.models.blocks.rope import rotary_frequencies, rotary_tables


class Gpt2Block(Module):
    """Attention and feed-forward layer of GPT-2, each behind a LayerNorm."""

    def __init__(self, config: ModelConfig, layer_index: int) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config.hidden_size, config.layer_norm_epsilon)
        self.attn = Gpt2Attention(config, layer_index)
        self.ln_2 = LayerNorm(config.hidden_size, config.layer_norm_epsilon)
        self.mlp = Gpt2FeedForward(config)
        self.is_last = layer_index == config.num_hidden_layers - 1

    def forward(self, x: Float[Tensor, "B T C"], shared: SharedInputs) -> Float[Tensor, "*rows C"]:
        """Add what the two layers have to say to the residual stream."""
        read = shared.read if self.is_last else None
        y = self.attn(self.ln_1(x), shared, read)
        x = (x if read is None else x[read]) + y
        return x + self.mlp(self.ln_2(x), shared.generator)


class LlamaBlock(Module):
    """Attention and feed-forward layer of Llama, each behind an RMSNorm."""

    def __init__(self, config: ModelConfig, layer_index: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = LlamaAttention(config, layer_index)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = LlamaFeedForward(config)
        self.is_last = layer_index == config.num_hidden_layers - 1

    def forward(self, x: Float[Tensor, "B T C"], shared: SharedInputs) -> Float[Tensor, "*rows C"]:
        """Add what the two layers have to say to the residual stream."""
        read = shared.read if self.is_last else None
        y = self.self_attn(self.input_layernorm(x), shared, read)
        x = (x if read is None else x[read]) + y
        return x + self.mlp(self.post_attention_layernorm(x))


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
        self,
        input_ids: Int[Array, "B T"],
        position_ids: Int[Array, "#B T"],
        shared: SharedInputs,
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
        self.embed_tokens = TokenEmbedding(config.vocab_size, config.hidden_size)
        self.layers = ModuleList(LlamaBlock(config, index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.frequencies = rotary_frequencies(config)

    def forward(
        self,
        input_ids: Int[Array, "B T"],
        position_ids: Int[Array, "#B T"],
        shared: SharedInputs,
    ) -> Float[Tensor, "*rows C"]:
        """Final hidden states."""
        x = self.embed_tokens(input_ids)
        shared.rotary = rotary_tables(self.frequencies, position_ids, x.dtype.type)
        for block in self.layers:
            x = block(x, shared)
        return self.norm(x)


class Transformer(Module):
    """A GPT-2 or Llama language model.

    `dropout_generator`: draws all dropout masks; its state belongs to the training state.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.dropout_generator = np.random.default_rng(0)
        if config.model_type == "gpt2":
            self.transformer = Gpt2Body(config)
        else:
            self.model = LlamaBody(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Make the output matrix the token embedding itself, where the configuration says so (Press & Wolf 2017)."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.token_embedding.weight

    @property
    def token_embedding(self) -> TokenEmbedding:
        """The token embedding of either family."""
        return self.transformer.wte if self.config.model_type == "gpt2" else self.model.embed_tokens

    def initialize(self, seed: int) -> "Transformer":
        """Set the initial weights of `initialization.py`; the same seed gives the same weights at all levels."""
        parameters = dict(self.named_parameters())
        for name, weight in initial_weights(self.config, seed):
            parameters[name].data[...] = weight
        self.dropout_generator = np.random.default_rng(seed)
        return self

    def hidden_states(
        self,
        input_ids: Int[Array, "B T"],
        position_ids: Int[Array, "#B T"] | None = None,
        document_ids: Int[Array, "B T"] | None = None,
        cache: Cache | None = None,
        attention_mask: Int[Array, "B S"] | Bool[Array, "B S"] | None = None,
        read: Bool[Array, "B T"] | None = None,
        branch_ids: Int[Array, "B T"] | None = None,
    ) -> Float[Tensor, "*rows C"]:
        """What the output matrix reads: the residual stream after the last norm. Arguments as of `forward`.

        With `read`, only the states at these positions, as rows [N, C]: what follows the last attention is computed for no other.
        `branch_ids`: in a document, those above 0 are continuations of what has 0, and do not see each other (padding.py).
        """
        T = input_ids.shape[1]
        past = 0 if cache is None else cache.length
        if past + T > self.config.max_position_embeddings:
            raise UserError(
                f"{past + T} tokens are more than the model's {self.config.max_position_embeddings} positions; shorten the "
                "text or use a model with a larger max_position_embeddings"
            )
        if position_ids is None:
            position_ids = np.arange(past, past + T)[None]
        mask = self._mask(document_ids, branch_ids, attention_mask, T)
        shared = SharedInputs(
            mask=mask,
            cache=cache,
            generator=self.dropout_generator if self.training else None,
            tiles=plan_tiles(mask, T, past + T)
            if document_ids is None
            else document_tiles(document_ids, branch_ids),
            read=read,
        )
        body = self.transformer if self.config.model_type == "gpt2" else self.model
        return body(input_ids, position_ids, shared)

    def forward(
        self,
        input_ids: Int[Array, "B T"],
        position_ids: Int[Array, "#B T"] | None = None,
        document_ids: Int[Array, "B T"] | None = None,
        cache: Cache | None = None,
        attention_mask: Int[Array, "B S"] | Bool[Array, "B S"] | None = None,
    ) -> Float[Tensor, "B T V"]:
        """Logits of the next token at every position.

        `document_ids`: tokens see only tokens of the same id (packing); `position_ids` then restart with each document.
        `cache`: the tokens follow those it holds, S = cached + T. `attention_mask`: 0 marks padding among the S keys.
        Raises `UserError` when the sequence is longer than the model's positions.
        """
        return self.lm_head(self.hidden_states(input_ids, position_ids, document_ids, cache, attention_mask))

    def loss(
        self,
        input_ids: Int[Array, "B T"],
        labels: Int[Array, "B T"],
        position_ids: Int[Array, "#B T"] | None = None,
        document_ids: Int[Array, "B T"] | None = None,
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy in nats. labels[t] is the token that follows input_ids[t]; -100 does not count.

        The work is shared out among threads (autograd/parallel.py), except with dropout, whose masks are drawn one by one.
        """
        keep_freed_memory()
        B, T = input_ids.shape
        threads = 1 if self.training and self._has_dropout() else available_threads()
        parts = [(rows, slice(0, T)) for rows in shards(B, threads)]
        if document_ids is not None and threads > B:
            cuts = [cut_documents(row, threads // B) for row in document_ids]
            parts = [(slice(row, row + 1), columns) for row in range(B) for columns in cuts[row]]
        if len(parts) == 1:
            return self._loss(input_ids, labels, position_ids, document_ids)
        if position_ids is None:
            position_ids = np.arange(T)[None]

        def loss_of(part: tuple[slice, slice]) -> Tensor:
            rows, columns = part
            positions = position_ids[rows if len(position_ids) > 1 else slice(None), columns]
            documents = None if document_ids is None else document_ids[part]
            return self._loss(input_ids[part], labels[part], positions, documents)

        counts = [int((labels[part] != IGNORE_INDEX).sum()) for part in parts]
        weights = [count / max(1, sum(counts)) for count in counts]
        return data_parallel(loss_of, parts, weights, list(self.parameters()))

    def _loss(
        self, input_ids: Array, labels: Array, position_ids: Array | None, document_ids: Array | None
    ) -> Tensor:
        """`loss` in one thread."""
        counted = labels != IGNORE_INDEX
        read = None if counted.all() else counted
        hidden = self.hidden_states(input_ids, position_ids, document_ids, read=read)
        rows = hidden.reshape(-1, hidden.shape[-1])
        targets = labels.reshape(-1) if read is None else labels[counted]
        return linear_cross_entropy(rows, self.lm_head.weight, targets)

    def _has_dropout(self) -> bool:
        """Whether training draws random masks."""
        adapters = any(getattr(module, "draws_masks", False) for module in self.modules())
        return (
            adapters
            or max(self.config.embd_pdrop, self.config.attention_dropout, self.config.resid_pdrop) > 0
        )

    def _mask(
        self, document_ids: Array | None, branch_ids: Array | None, attention_mask: Array | None, T: int
    ) -> Array | None:
        """The additive mask of a pass, built once for all blocks; None is plain causal.

        The fused kernel sees documents by their tiles; only attention dropout needs their mask.
        """
        dtype = self.lm_head.weight.dtype.type
        assert document_ids is None or attention_mask is None, (
            "packed sequences have no padding mask: mark padding by a document of its own"
        )
        if document_ids is not None:
            dropped = self.training and self.config.attention_dropout > 0
            return document_mask(document_ids, dtype, branch_ids) if dropped else None
        return None if attention_mask is None else padding_mask(attention_mask, T, dtype)

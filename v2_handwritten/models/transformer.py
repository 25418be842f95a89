"""The language model: embeddings, a stack of blocks around the residual stream, a norm, the output matrix.

One class for both families, GPT-2 (Radford et al. 2019) and Llama (Touvron et al. 2023), which differ in their blocks only:

    x = x + attention(norm(x));   x = x + feed_forward(norm(x))

Parameters carry Hugging Face's names, so `state_dict()` is a checkpoint of `GPT2LMHeadModel` or `LlamaForCausalLM`.

Level 1 builds those library classes. Level 3: the same classes over its own autograd.

    python -c "import torch; from v2_handwritten.models.transformer import *; print(Transformer(ModelConfig()).initialize(0)(torch.zeros(1, 4, dtype=torch.int64)).shape)"
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from shared_data.errors import UserError
from shared_data.model_files.config import ModelConfig
from shared_data.model_files.initialization import initial_weights
from v2_handwritten.models.blocks.attention import (
    Cache,
    Gpt2Attention,
    LlamaAttention,
    SharedInputs,
    padding_mask,
)
from v2_handwritten.models.blocks.cross_entropy import IGNORE_INDEX, linear_cross_entropy
from v2_handwritten.models.blocks.dropout import dropout
from v2_handwritten.models.blocks.embeddings import PositionEmbedding, TokenEmbedding
from v2_handwritten.models.blocks.feed_forward import Gpt2FeedForward, LlamaFeedForward
from v2_handwritten.models.blocks.linear import Conv1D, Linear
from v2_handwritten.models.blocks.normalization import LayerNorm, RMSNorm
from v2_handwritten.models.blocks.rope import rotary_frequencies, rotary_tables


class Gpt2Block(nn.Module):
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


class LlamaBlock(nn.Module):
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


class Gpt2Body(nn.Module):
    """GPT-2 without its output matrix; the attribute names are those of its checkpoints."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.wte = TokenEmbedding(config.vocab_size, config.hidden_size)
        self.wpe = PositionEmbedding(config.max_position_embeddings, config.hidden_size)
        self.h = nn.ModuleList(Gpt2Block(config, index) for index in range(config.num_hidden_layers))
        self.ln_f = LayerNorm(config.hidden_size, config.layer_norm_epsilon)
        self.dropout = config.embd_pdrop

    def forward(
        self,
        input_ids: Int[Tensor, "B T"],
        position_ids: Int[Tensor, "#B T"],
        shared: SharedInputs,
        run_block: Callable,
    ) -> Float[Tensor, "*rows C"]:
        """Final hidden states; `run_block(block, x, shared)` calls a block."""
        x = self.wte(input_ids) + self.wpe(position_ids)
        x = dropout(x, self.dropout, self.training, shared.generator)
        for block in self.h:
            x = run_block(block, x, shared)
        return self.ln_f(x)


class LlamaBody(nn.Module):
    """Llama without its output matrix; the attribute names are those of its checkpoints."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = TokenEmbedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(LlamaBlock(config, index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.frequencies = rotary_frequencies(config)

    def forward(
        self,
        input_ids: Int[Tensor, "B T"],
        position_ids: Int[Tensor, "#B T"],
        shared: SharedInputs,
        run_block: Callable,
    ) -> Float[Tensor, "*rows C"]:
        """Final hidden states; `run_block(block, x, shared)` calls a block."""
        x = self.embed_tokens(input_ids)
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        shared.rotary = rotary_tables(self.frequencies, position_ids, dtype)
        for block in self.layers:
            x = run_block(block, x, shared)
        return self.norm(x)


class Transformer(nn.Module):
    """A GPT-2 or Llama language model.

    `attention_kernel`: "handwritten" or torch's "library" one. `activation_checkpointing`: keep only the input of each
    block for the backward pass and compute the block again there. `compute_dtype`: type of matrix products (None: that of
    the parameters). `dropout_generator`: draws all dropout masks; its state belongs to the training state.
    """

    def __init__(
        self, config: ModelConfig, attention_kernel: Literal["handwritten", "library"] = "handwritten"
    ) -> None:
        super().__init__()
        self.config = config
        self.attention_kernel = attention_kernel
        self.activation_checkpointing = False
        self._dropout_generator = torch.Generator().manual_seed(0)
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

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """Type of the matrix products; norms, softmax and loss stay in float32 or wider."""
        return self.lm_head.compute_dtype

    @compute_dtype.setter
    def compute_dtype(self, dtype: torch.dtype | None) -> None:
        for module in self.modules():
            if isinstance(module, (Linear, Conv1D)):
                module.compute_dtype = dtype

    @property
    def dropout_generator(self) -> torch.Generator:
        """The generator of the dropout masks, on the device of the parameters."""
        device = self.lm_head.weight.device
        if self._dropout_generator.device != device:
            self._dropout_generator = torch.Generator(device).manual_seed(
                self._dropout_generator.initial_seed()
            )
        return self._dropout_generator

    def initialize(self, seed: int) -> "Transformer":
        """Set the initial weights of `initialization.py`; the same seed gives the same weights at all levels."""
        parameters = dict(self.named_parameters())
        with torch.no_grad():
            for name, weight in initial_weights(self.config, seed):
                parameters[name].copy_(torch.from_numpy(weight))
        self.dropout_generator.manual_seed(seed)
        return self

    def hidden_states(
        self,
        input_ids: Int[Tensor, "B T"],
        position_ids: Int[Tensor, "#B T"] | None = None,
        document_ids: Int[Tensor, "B T"] | None = None,
        cache: Cache | None = None,
        attention_mask: Int[Tensor, "B S"] | Bool[Tensor, "B S"] | None = None,
        read: Bool[Tensor, "B T"] | None = None,
        branch_ids: Int[Tensor, "B T"] | None = None,
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
            position_ids = torch.arange(past, past + T, device=input_ids.device).unsqueeze(0)
        shared = SharedInputs(
            mask=self._mask(document_ids, attention_mask, T),
            document_ids=document_ids,
            branch_ids=branch_ids,
            cache=cache,
            generator=self.dropout_generator if self.training else None,
            kernel=self.attention_kernel,
            read=read,
        )
        checkpoint = self.activation_checkpointing and self.training and torch.is_grad_enabled()
        body = self.transformer if self.config.model_type == "gpt2" else self.model
        return body(input_ids, position_ids, shared, _run_checkpointed if checkpoint else _run)

    def forward(
        self,
        input_ids: Int[Tensor, "B T"],
        position_ids: Int[Tensor, "#B T"] | None = None,
        document_ids: Int[Tensor, "B T"] | None = None,
        cache: Cache | None = None,
        attention_mask: Int[Tensor, "B S"] | Bool[Tensor, "B S"] | None = None,
    ) -> Float[Tensor, "B T V"]:
        """Logits of the next token at every position.

        `document_ids`: tokens see only tokens of the same id (packing); `position_ids` then restart with each document.
        `cache`: the tokens follow those it holds, S = cached + T. `attention_mask`: 0 marks padding among the S keys.
        Raises `UserError` when the sequence is longer than the model's positions.
        """
        return self.lm_head(self.hidden_states(input_ids, position_ids, document_ids, cache, attention_mask))

    def loss(
        self,
        input_ids: Int[Tensor, "B T"],
        labels: Int[Tensor, "B T"],
        position_ids: Int[Tensor, "#B T"] | None = None,
        document_ids: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy in nats. labels[t] is the token that follows input_ids[t]; -100 does not count."""
        counted = labels != IGNORE_INDEX
        read = None if labels.is_cuda or bool(counted.all()) else counted  # a GPU is not made to wait
        hidden = self.hidden_states(input_ids, position_ids, document_ids, read=read)
        dtype = self.compute_dtype or self.lm_head.weight.dtype
        rows = hidden.reshape(-1, hidden.shape[-1]).to(dtype)
        targets = labels.reshape(-1) if read is None else labels[counted]
        return linear_cross_entropy(rows, self.lm_head.weight.to(dtype), targets)

    def _mask(self, document_ids: Tensor | None, attention_mask: Tensor | None, T: int) -> Tensor | None:
        """The additive mask of a pass, built once for all blocks; None is plain causal, within documents where there are any."""
        dtype = torch.float64 if self.lm_head.weight.dtype == torch.float64 else torch.float32
        assert document_ids is None or attention_mask is None, (
            "packed sequences have no padding mask: mark padding by a document of its own"
        )
        return None if attention_mask is None else padding_mask(attention_mask, T, dtype)


def _run(block: nn.Module, x: Tensor, shared: SharedInputs) -> Tensor:
    """Call a block."""
    return block(x, shared)


def _run_checkpointed(block: nn.Module, x: Tensor, shared: SharedInputs) -> Tensor:
    """Call a block without keeping its activations (Chen et al. 2016)."""
    return _Checkpoint.apply(x, block, shared)


class _Checkpoint(torch.autograd.Function):
    """Forward without a graph; backward computes the block again, with the same dropout masks, and walks back through it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, block: nn.Module, shared: SharedInputs) -> Tensor:
        ctx.save_for_backward(x)
        ctx.block, ctx.shared = block, shared
        ctx.generator_state = shared.generator.get_state() if shared.generator is not None else None
        return block(x, shared)

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, None, None]:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        generator = ctx.shared.generator
        state_after_forward = generator.get_state() if generator is not None else None
        if generator is not None:
            generator.set_state(ctx.generator_state)
        with torch.enable_grad():
            y = ctx.block(x, ctx.shared)
        if generator is not None:
            generator.set_state(state_after_forward)
        torch.autograd.backward(y, d_y)  # adds to the gradients of the block's parameters
        return x.grad, None, None

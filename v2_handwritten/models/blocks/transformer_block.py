"""A block of the residual stream: attention, then a feed-forward layer, each behind a norm.

    x = x + attention(norm(x));   x = x + feed_forward(norm(x))

GPT-2's (Radford et al. 2019) and Llama's (Touvron et al. 2023). All other families are Llama's block with other parts, which the
configuration names: latent or indexed attention, a mixture of experts, norms behind the layers too.

Level 1: transformers' `GPT2Block`, `LlamaDecoderLayer` and its relatives. Level 3: the same over its own autograd.

    uv run python -c "import torch; from v2_handwritten.models.blocks.transformer_block import *; print(LlamaBlock(ModelConfig(), 0))"
"""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from shared_data.model_files.config import ModelConfig
from v2_handwritten.models.blocks.attention import Gpt2Attention, LlamaAttention, SharedInputs
from v2_handwritten.models.blocks.clamped_experts import ClampedMixture
from v2_handwritten.models.blocks.feed_forward import Gpt2FeedForward, LlamaFeedForward
from v2_handwritten.models.blocks.latent_attention import LatentAttention
from v2_handwritten.models.blocks.mixture_of_experts import MixtureOfExperts
from v2_handwritten.models.blocks.normalization import LayerNorm, RMSNorm
from v2_handwritten.models.blocks.sparse_indexer import IndexedAttention


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
        """Add the outputs of both layers to the residual stream; the last block does so only where logits are wanted."""
        keep = shared.logits_to_keep if self.is_last else None
        y = self.attn(self.ln_1(x), shared, keep)
        x = (x if keep is None else x[keep]) + y
        return x + self.mlp(self.ln_2(x), shared.generator)


def attention_class(config: ModelConfig, layer_index: int) -> Callable[[ModelConfig, int], nn.Module]:
    """The attention of a layer of Llama's family."""
    if config.kv_lora_rank:
        return LatentAttention
    return IndexedAttention if config.layer_types[layer_index] == "indexed_attention" else LlamaAttention


def residual_norm(config: ModelConfig) -> RMSNorm:
    """A norm of the residual stream."""
    return RMSNorm(config.hidden_size, config.rms_norm_eps, config.norm_offset)


def _sparse_layer(config: ModelConfig) -> MixtureOfExperts | ClampedMixture:
    """A mixture of experts, of the kind of the family."""
    return ClampedMixture(config) if config.clamped_experts else MixtureOfExperts(config)


class LlamaBlock(nn.Module):
    """Attention and feed-forward layer of Llama and its relatives, each behind an RMSNorm; the latter may be a mixture of experts.

    In Gemma 2 each also stands before one. There, `post_attention_layernorm` is what it says: the norm of what attention adds. Llama calls
    the norm before the feed-forward layer so.
    """

    def __init__(self, config: ModelConfig, layer_index: int) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = residual_norm(config), residual_norm(config)
        self.self_attn = attention_class(config, layer_index)(config, layer_index)
        self.is_last, self.is_sparse = (
            layer_index + 1 == config.num_hidden_layers,
            config.is_sparse(layer_index),
        )
        self.mlp = _sparse_layer(config) if self.is_sparse else LlamaFeedForward(config)
        self.pre_feedforward_layernorm = residual_norm(config) if config.post_norms else None
        self.post_feedforward_layernorm = residual_norm(config) if config.post_norms else None

    def forward(self, x: Float[Tensor, "B T C"], shared: SharedInputs) -> Float[Tensor, "*rows C"]:
        """Add the outputs of both layers to the residual stream; the last block does so only where logits are wanted."""
        keep = shared.logits_to_keep if self.is_last else None
        y = self.self_attn(self.input_layernorm(x), shared, keep)
        x = x if keep is None else x[keep]
        if self.post_feedforward_layernorm is not None:
            return self._add_normalized(x, y, shared)
        x = x + y
        return x + self._feed_forward(self.post_attention_layernorm(x), shared)

    def _feed_forward(self, x: Float[Tensor, "*rows C"], shared: SharedInputs) -> Float[Tensor, "*rows C"]:
        """Experts tell how they were chosen."""
        return self.mlp(x, shared.routings) if self.is_sparse else self.mlp(x)

    def _add_normalized(
        self, x: Float[Tensor, "*rows C"], y: Float[Tensor, "*rows C"], shared: SharedInputs
    ) -> Float[Tensor, "*rows C"]:
        """What both layers add is normalized before it is added (Gemma 2)."""
        before, after = self.pre_feedforward_layernorm, self.post_feedforward_layernorm
        assert before is not None, "only Gemma 2 has these norms"
        assert after is not None, "only Gemma 2 has these norms"
        x = x + self.post_attention_layernorm(y)
        return x + after(self._feed_forward(before(x), shared))

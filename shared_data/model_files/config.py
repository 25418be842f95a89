"""The architecture of a model: from our settings, and from and to a Hugging Face `config.json`.

`ModelConfig` holds what all families need, under transformers' names (`hidden_size`, `num_key_value_heads`, …); GPT-2's own
names (`n_embd`, `n_head`, …) exist only in its `config.json`. Which fields a family has, and what they are called there, stands in
families.py; how large a model is and how much work it does, in size.py.

Level 1 builds transformers' configuration from it (`to_hf`).

    uv run python -c "from shared_data.model_files.config import *; print(ModelConfig(model_type='mixtral', num_local_experts=4))"
"""

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared_data.attention.patterns import AttentionPattern
from shared_data.errors import UserError
from shared_data.foreign_json import Length, Number, Size
from shared_data.model_files.config_checks import SIZE_OF_KIND, check_config, check_family
from shared_data.model_files.config_defaults import fill_in
from shared_data.model_files.config_file import read_config_json, write_config_json
from shared_data.model_files.config_schema import (
    ConfigJson,
    Count,
    Layers,
    NamedId,
    Probability,
    RopeTheta,
    WindowSize,
    check_types,
)
from shared_data.model_files.families import FAMILIES, Family
from shared_data.model_files.rope_scaling import with_original_length
from shared_data.quantization.config import Quantization
from shared_data.settings import ModelSettings


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and choices of a model. A zero or empty value among them is filled in with its default."""

    model_type: str = "llama"  # the family, a key of `FAMILIES`
    vocab_size: Size = 1024  # V
    hidden_size: Size = 128  # C, the width of the residual stream
    intermediate_size: Count = 0  # F; default 4 C (gpt2), 8/3 C rounded up to a multiple of 32 (the others)
    num_hidden_layers: Layers = 4
    num_attention_heads: Size = 4  # H
    num_key_value_heads: Count = 0  # K; default H
    head_dim: Count = 0  # D; default C / H; of latent attention, the part that is rotated
    max_position_embeddings: Length = 256
    rope_theta: RopeTheta = 10_000.0
    rope_scaling: dict[str, Any] | None = None  # {"rope_type": "yarn", "factor": …, …} (rope_scaling.py)
    no_rope_layers: list[Count] = field(default_factory=list)  # smollm3, one a layer: 0 rotates nothing there
    rms_norm_eps: Number = 1e-5
    layer_norm_epsilon: Number = 1e-5  # gpt2
    tie_word_embeddings: bool = True  # the output matrix is the token embedding
    attention_bias: bool = False  # biases of q, k, v and o
    attention_output_bias: bool = True  # where there are biases, o has one too (not in qwen2)
    attention_sinks: bool = False  # a learned logit of each head, beside those of the keys (gpt-oss)
    qk_norm: bool = False  # an RMSNorm of every query and key head (Qwen3)
    query_pre_attn_scalar: Count = 0  # gemma2: scores are divided by its root; default D
    attn_logit_softcapping: Number | None = None  # gemma2: scores become c tanh(s/c)
    final_logit_softcapping: Number | None = None  # gemma2: logits become c tanh(z/c)
    post_norms: bool = False  # a norm of what each half of a block adds, too (Gemma 2)
    norm_offset: bool = False  # norms multiply by 1 + weight (Gemma)
    scale_embeddings: bool = False  # by √C (Gemma)
    mlp_bias: bool = False  # biases of gate, up and down
    hidden_act: str = ""  # default gelu_new (gpt2, gemma2), silu (the others)
    embd_pdrop: Probability = 0.0  # gpt2: dropout of the embeddings
    attention_dropout: Probability = 0.0  # of the attention weights; GPT-2's files call it `attn_pdrop`
    resid_pdrop: Probability = 0.0  # gpt2: dropout of what a block adds to the residual stream
    # Which keys a query sees (blocks/attention_patterns.py).
    layer_types: list[str] = field(default_factory=list)  # the kind of each layer; default full_attention
    sliding_window: WindowSize | None = None  # W of sliding_attention: the last W tokens, its own included
    attention_chunk_size: WindowSize | None = None  # of chunked_attention
    attention_stride: WindowSize | None = None  # of strided_attention
    num_sink_tokens: WindowSize = 0  # the first tokens of a text, seen by all kinds of attention
    index_topk: WindowSize = 0  # of indexed_attention: keys that the indexer selects for a query
    index_n_heads: Count = 0
    index_head_dim: Count = 0
    # Mixture of experts (blocks/mixture_of_experts.py). E = 0: none.
    num_local_experts: Count = 0  # E
    num_experts_per_tok: Size = 2
    moe_intermediate_size: Count = 0  # F of an expert; default intermediate_size
    clamped_experts: bool = False  # gpt-oss's kind (blocks/clamped_experts.py)
    swiglu_alpha: Number = 1.702  # of clamped experts: gate · sigmoid(alpha gate),
    swiglu_limit: Number = 7.0  # and where gate and up are cut off
    mlp_only_layers: list[Count] = field(default_factory=list)  # layers without experts
    scoring_func: str = "softmax"  # of the router: "softmax" or "sigmoid" (DeepSeek-V3)
    norm_topk_prob: bool = True  # the weights of the chosen experts sum to 1
    router_aux_loss_coef: Number = 0.001  # of the load-balancing loss
    output_router_logits: bool = False  # a forward pass of the library computes the load-balancing loss, too
    n_shared_experts: Count = 0  # experts that every token passes, as one of this many times the width
    routed_scaling_factor: Number = 1.0
    n_group: Size = 1  # groups of experts, and how many of them a token may choose from
    topk_group: Size = 1
    # Multi-head latent attention (blocks/latent_attention.py). kv_lora_rank = 0: none.
    kv_lora_rank: Count = 0  # width of the compressed keys and values
    q_lora_rank: Count | None = None  # width of the compressed queries; None: not compressed
    qk_nope_head_dim: Count = 0  # of a query and key head: the part that is not rotated,
    qk_rope_head_dim: Count = 0  # and the part that is
    v_head_dim: Count = 0
    initializer_range: Number = 0.02  # standard deviation of the initial weights
    bos_token_id: NamedId | None = None
    eos_token_id: NamedId | list[NamedId] | None = None
    quantization: Quantization | None = None  # how the weights of the blocks are stored; None: as they are

    def __post_init__(self) -> None:
        """Fill in the defaults that depend on other fields, and refuse sizes that cannot be built."""
        if self.model_type not in FAMILIES:
            raise UserError(f"model_type {self.model_type!r} is not supported; choose {supported_families()}")
        check_types(self)
        check_family(self)
        fill_in(self)
        check_config(self)

    @property
    def family(self) -> Family:
        """Its entry of the table."""
        return FAMILIES[self.model_type]

    def is_sparse(self, layer: int) -> bool:
        """Whether the feed-forward part of a layer is a mixture of experts."""
        return self.num_local_experts > 0 and layer not in self.mlp_only_layers

    @property
    def has_sparse_layers(self) -> bool:
        """Whether any layer is a mixture of experts."""
        return any(map(self.is_sparse, range(self.num_hidden_layers)))

    def has_rope(self, layer: int) -> bool:
        """Whether a layer rotates its queries and keys."""
        return not self.no_rope_layers or bool(self.no_rope_layers[layer])

    @property
    def has_balancing_loss(self) -> bool:
        """Whether training adds a loss that keeps the experts equally busy."""
        return "router_aux_loss_coef" in self.family.names and self.router_aux_loss_coef > 0

    def pattern(self, layer: int) -> AttentionPattern:
        """Which keys the queries of a layer see."""
        kind = self.layer_types[layer]
        if kind == "indexed_attention":  # which ones depends on the text: the indexer chooses among all
            return AttentionPattern()
        size = getattr(self, SIZE_OF_KIND[kind]) if kind in SIZE_OF_KIND else 0
        sinks = 0 if kind == "full_attention" else self.num_sink_tokens
        return AttentionPattern(kind, size, sinks)

    @property
    def has_dynamic_rope(self) -> bool:
        """Whether the rotary frequencies depend on the length of the text."""
        return (self.rope_scaling or {}).get("rope_type") == "dynamic"

    @property
    def max_length(self) -> int:
        """The longest text: with dynamic frequencies, `factor` times what the model was trained on; else its positions."""
        factor = self.rope_scaling["factor"] if self.rope_scaling and self.has_dynamic_rope else 1
        return int(factor * self.max_position_embeddings)

    @property
    def has_plain_blocks(self) -> bool:
        """Whether all blocks are GPT-2's or Llama's own: no experts, no latents, no norm of queries and keys, no pattern, nothing of Gemma.

        And whether their weights are plain numbers.
        """
        return (
            self.quantization is None
            and not (self.num_local_experts or self.kv_lora_rank or self.qk_norm or self.has_dynamic_rope)
            and not (self.post_norms or self.norm_offset or self.scale_embeddings or self.attention_sinks)
            and not (self.attn_logit_softcapping or self.final_logit_softcapping)
            and all(kind == "full_attention" for kind in self.layer_types)
            and all(self.has_rope(layer) for layer in range(self.num_hidden_layers))
        )

    @property
    def head_name(self) -> str:
        """The name, in a checkpoint, of the matrix that makes the logits: its own, or that of the token embedding."""
        embedding = "transformer.wte.weight" if self.model_type == "gpt2" else "model.embed_tokens.weight"
        return embedding if self.tie_word_embeddings else "lm_head.weight"

    @classmethod
    def from_settings(
        cls, settings: ModelSettings, vocab_size: int, eos_token_id: int | None = None
    ) -> "ModelConfig":
        """The architecture that `[model]` of a configuration asks for; the vocabulary comes from the tokenizer."""
        values = {
            name: value
            for name, value in settings.model_dump(exclude={"dropout"}).items()
            if value is not None
        }
        family, L = FAMILIES[settings.model_type], settings.num_hidden_layers
        for name, fixed in family.blocks.items():
            if values.get(name, fixed) != fixed:
                raise UserError(f"{settings.model_type} has {name} = {fixed} always; leave it out")
        for name in {"layer_types", "no_rope_layers"} & set(values):  # a pattern of layers, repeated
            values[name] = list(itertools.islice(itertools.cycle(values[name]), L))
        if "rope_scaling" in values:
            values["rope_scaling"] = with_original_length(
                values["rope_scaling"], settings.max_position_embeddings
            )
        for name in ("attn_logit_softcapping", "final_logit_softcapping"):
            if name in family.names:
                values[name] = values.get(name, family.defaults[name]) or None
        # One, as DeepSeek-V3: the library cannot do without.
        if "n_shared_experts" in family.names:
            values.setdefault("n_shared_experts", 1)
        gpt2_dropout = settings.dropout if settings.model_type == "gpt2" else 0.0
        return cls(
            **values,
            vocab_size=vocab_size,
            embd_pdrop=gpt2_dropout,
            attention_dropout=settings.dropout,
            resid_pdrop=gpt2_dropout,
            bos_token_id=eos_token_id,  # the token that ends a document also stands before the first one
            eos_token_id=eos_token_id,
        )

    @classmethod
    def from_hf(cls, config: dict[str, Any], source: Path | str = "config.json") -> "ModelConfig":
        """Read the contents of a Hugging Face `config.json`. Raises `UserError`, with its `source`, for what cannot be built."""
        model_type = ConfigJson.read(config, source).model_type
        if model_type not in FAMILIES:
            raise UserError(
                f"{source} describes a model of type {model_type!r}; supported are {supported_families()}"
            )
        try:
            return cls(model_type=model_type, **read_config_json(config, FAMILIES[model_type]))
        except UserError as error:
            raise UserError(f"{source}: {error}") from error

    def to_hf(self) -> dict[str, Any]:
        """The contents of a `config.json` that transformers (and llama.cpp, vLLM, …) read."""
        return write_config_json(self, self.family)


def supported_families() -> str:
    """The families by name, for a message."""
    return ", ".join(FAMILIES)

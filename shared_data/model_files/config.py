"""The architecture of a model: from our settings, and from and to a Hugging Face `config.json`.

`ModelConfig` holds what both families need under Llama's names (`hidden_size`, `num_key_value_heads`, …); GPT-2's own
names (`n_embd`, `n_head`, …) exist only in its `config.json`. `count_parameters` and `flops_per_token` answer "how big"
and "how much work" before anything is built (Kaplan et al. 2020, section 2.1; Chowdhery et al. 2022, appendix B).

Level 1 builds transformers' `GPT2Config` or `LlamaConfig` from it (`to_hf`).

    uv run python -c "from shared_data.model_files.config import *; print(count_parameters(ModelConfig(vocab_size=1024)))"
"""

import math
from dataclasses import dataclass, fields
from types import UnionType
from typing import Any, get_args, get_origin

from shared_data.errors import UserError
from shared_data.files import is_number
from shared_data.settings import ModelSettings

# Kinds of rope_scaling, and the numbers that each must have.
ROPE_TYPES: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
_ACTIVATIONS = {"gpt2": ("gelu_new", "gelu"), "llama": ("silu",)}


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and choices of a GPT-2 or Llama model. A zero or empty value among them is filled in with its default."""

    model_type: str = "llama"  # "gpt2" or "llama"
    vocab_size: int = 1024  # V
    hidden_size: int = 128  # C, the width of the residual stream
    intermediate_size: int = 0  # F; default 4 C (gpt2), 8/3 C rounded up to a multiple of 32 (llama)
    num_hidden_layers: int = 4
    num_attention_heads: int = 4  # H
    num_key_value_heads: int = 0  # K; default H
    head_dim: int = 0  # D; default C / H
    max_position_embeddings: int = 256
    rope_theta: float = 10_000.0  # llama
    rope_scaling: dict[str, Any] | None = None  # llama: {"rope_type": "linear" or "llama3", "factor": …, …}
    rms_norm_eps: float = 1e-5  # llama
    layer_norm_epsilon: float = 1e-5  # gpt2
    tie_word_embeddings: bool = True  # the output matrix is the token embedding
    attention_bias: bool = False  # llama: biases of q, k, v and o; gpt2 always has them
    mlp_bias: bool = False  # llama: biases of gate, up and down; gpt2 always has them
    hidden_act: str = ""  # default gelu_new (gpt2), silu (llama)
    embd_pdrop: float = 0.0  # gpt2: dropout of the embeddings
    attention_dropout: float = 0.0  # dropout of the attention weights; `attn_pdrop` in a GPT-2 config.json
    resid_pdrop: float = 0.0  # gpt2: dropout of what a block adds to the residual stream
    initializer_range: float = 0.02  # standard deviation of the initial weights
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self) -> None:
        """Fill in the defaults that depend on other fields, and refuse sizes that cannot be built."""
        if self.model_type not in _ACTIVATIONS:
            raise UserError(
                f"model_type {self.model_type!r} is not supported; choose a checkpoint or setting of 'gpt2' or 'llama'"
            )
        self._check_types()
        fill = {
            "intermediate_size": _default_intermediate_size(self.model_type, self.hidden_size),
            "num_key_value_heads": self.num_attention_heads,
            "head_dim": self.hidden_size // self.num_attention_heads,
            "hidden_act": _ACTIVATIONS[self.model_type][0],
        }
        for name, default in fill.items():
            if not getattr(self, name):
                object.__setattr__(self, name, default)
        if self.model_type == "gpt2":  # its biases are part of the architecture
            object.__setattr__(self, "attention_bias", True)
            object.__setattr__(self, "mlp_bias", True)
        self._check_sizes()

    def _check_types(self) -> None:
        """Raise `UserError` for a value that is no size, number, flag, text or id where one must be; zero is filled in later."""
        for field in fields(self):
            value = getattr(self, field.name)
            # Some folders write -1 for an id that there is not.
            smallest = -1 if field.default is None else 0 if field.default == 0 else 1
            if not _fits(value, field.type, smallest):
                raise UserError(
                    f"the model's {field.name} is {value!r:.60}; correct its config.json or copy it again"
                )

    def _check_sizes(self) -> None:
        """Raise `UserError` with the remedy for sizes or choices that no model can have."""
        heads, groups, D = self.num_attention_heads, self.num_key_value_heads, self.head_dim
        if self.hidden_size % heads:  # even where head_dim is given, as transformers has it
            raise UserError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {heads}; change one of them"
            )
        if heads % groups:
            raise UserError(
                f"num_attention_heads {heads} is not a multiple of num_key_value_heads {groups}; change one of them"
            )
        if self.model_type == "gpt2" and (groups != heads or heads * D != self.hidden_size):
            raise UserError(
                "gpt2 has one key-value head per query head and head_dim = hidden_size / heads; use model_type llama"
            )
        if self.model_type == "llama" and D % 2:
            raise UserError(f"rotary positions turn pairs, but head_dim is {D}; choose an even head_dim")
        if self.hidden_act not in _ACTIVATIONS[self.model_type]:
            raise UserError(
                f"activation {self.hidden_act!r} is not supported for {self.model_type}; "
                f"supported: {', '.join(_ACTIVATIONS[self.model_type])}"
            )
        scaling = self.rope_scaling or {"rope_type": "default"}
        kind = scaling.get("rope_type")
        if not isinstance(kind, str) or kind not in ROPE_TYPES:
            raise UserError(f"rope_scaling {kind!r} is not supported; supported: {', '.join(ROPE_TYPES)}")
        for name in ROPE_TYPES[kind]:
            if not is_number(scaling.get(name)) or scaling[name] <= 0:
                raise UserError(
                    f"rope_scaling of the type {kind} has {name} {scaling.get(name)!r:.60}, not a positive number; correct "
                    "config.json or copy it again"
                )

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
    def from_hf(cls, config: dict[str, Any]) -> "ModelConfig":
        """Read the contents of a Hugging Face `config.json`. Raises `UserError` for another architecture."""
        model_type = config.get("model_type")
        if not isinstance(model_type, str) or model_type not in _FROM_HF:
            raise UserError(
                f"config.json describes a model of type {model_type!r}; only 'gpt2' and 'llama' checkpoints are supported"
            )
        _refuse_unsupported_choices(config)
        values = {ours: config[theirs] for theirs, ours in _FROM_HF[model_type].items() if theirs in config}
        defaults = _HF_DEFAULTS[model_type]  # a config.json may leave out what equals the library's default
        values = defaults | {
            name: value for name, value in values.items() if value is not None or name in _NULLABLE
        }
        if model_type == "llama":
            values["rope_theta"], values["rope_scaling"] = _read_rope(config)
        if values.get("hidden_act") == "gelu_pytorch_tanh":  # another name of the same function
            values["hidden_act"] = "gelu_new"
        return cls(model_type=model_type, **values)

    def to_hf(self) -> dict[str, Any]:
        """The contents of a `config.json` that transformers (and llama.cpp, vLLM, …) read."""
        hf: dict[str, Any] = {
            "architectures": [_ARCHITECTURES[self.model_type]],
            "model_type": self.model_type,
        }
        hf |= {theirs: getattr(self, ours) for theirs, ours in _FROM_HF[self.model_type].items()}
        if self.model_type == "llama":
            # transformers 5 reads `rope_parameters`; earlier versions and other programs read the other two.
            scaling = self.rope_scaling or {"rope_type": "default"}
            hf["rope_parameters"] = {**scaling, "rope_theta": self.rope_theta}
            hf["rope_theta"] = self.rope_theta
            # A copy: transformers writes into it.
            hf["rope_scaling"] = self.rope_scaling and dict(self.rope_scaling)
        return hf


def _fits(value: Any, kind: Any, smallest: int) -> bool:
    """Whether a value is of the type of a field: an integer of 31 bits from `smallest`, a finite number from 0, or whatever else it is."""
    if isinstance(kind, UnionType):
        return any(_fits(value, each, smallest) for each in get_args(kind))
    if get_origin(kind) is list:
        return type(value) is list and all(_fits(each, get_args(kind)[0], smallest) for each in value)
    if kind is int:
        return type(value) is int and smallest <= value < 2**31
    if kind is float:
        return is_number(value) and value >= 0
    return type(value) is (get_origin(kind) or kind)


_ARCHITECTURES = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}
_NULLABLE = ("bos_token_id", "eos_token_id")
_SHARED_NAMES = ("vocab_size", "tie_word_embeddings", "initializer_range", "bos_token_id", "eos_token_id")

# Names in a Hugging Face config.json → our names.
_FROM_HF: dict[str, dict[str, str]] = {
    "gpt2": {name: name for name in (*_SHARED_NAMES, "layer_norm_epsilon", "embd_pdrop", "resid_pdrop")}
    | {
        "n_embd": "hidden_size",
        "n_inner": "intermediate_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_positions": "max_position_embeddings",
        "activation_function": "hidden_act",
        "attn_pdrop": "attention_dropout",
    },
    "llama": {
        name: name
        for name in (
            *_SHARED_NAMES,
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "max_position_embeddings",
            "rms_norm_eps",
            "attention_bias",
            "attention_dropout",
            "mlp_bias",
            "hidden_act",
        )
    },
}

# What transformers assumes where a config.json is silent.
_HF_DEFAULTS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "vocab_size": 50257,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 1024,
        "embd_pdrop": 0.1,
        "attention_dropout": 0.1,
        "resid_pdrop": 0.1,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
    },
    "llama": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
}


def _default_intermediate_size(model_type: str, hidden_size: int) -> int:
    """F. SwiGLU has three matrices instead of two, so Llama takes 2/3 of 4 C to keep the parameter count (Shazeer 2020)."""
    return 4 * hidden_size if model_type == "gpt2" else 32 * math.ceil(8 * hidden_size / 3 / 32)


def _read_rope(config: dict[str, Any]) -> tuple[float, dict[str, Any] | None]:
    """Base and scaling of the rotary frequencies, from the style of transformers 5 or the older one."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise UserError(f"rope_scaling is {rope!r:.60}, not an object; correct config.json or copy it again")
    rope = dict(rope)
    theta = rope.pop("rope_theta", None) or config.get("rope_theta") or 10_000.0
    rope_type = rope.pop("rope_type", None) or rope.pop("type", None) or "default"
    rope.pop("type", None)
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError("partial_rotary_factor is not supported; use a checkpoint that rotates whole heads")
    if rope_type == "default":
        return theta, None
    if rope_type == "llama3":  # the length the model was first trained on
        rope.setdefault("original_max_position_embeddings", config.get("max_position_embeddings", 2048))
    return theta, {"rope_type": rope_type, **rope}


def _refuse_unsupported_choices(config: dict[str, Any]) -> None:
    """What changes the numbers and is not computed here: quantized weights, and GPT-2's choices that no well-known checkpoint makes."""
    if config.get("quantization_config") is not None:
        raise UserError(
            "config.json has a quantization_config, and quantized weights cannot be read; use the checkpoint before it was "
            "quantized, or remove that entry where it was not"
        )
    for name, usual in (
        ("scale_attn_weights", True),
        ("scale_attn_by_inverse_layer_idx", False),
        ("add_cross_attention", False),
    ):
        if config.get(name, usual) != usual:
            raise UserError(
                f"config.json sets {name} = {config[name]}, which is not supported; it must be {usual}"
            )


def count_parameters(config: ModelConfig) -> int:
    """Numbers that training adjusts; a tied output matrix counts once."""
    C, F, V = config.hidden_size, config.intermediate_size, config.vocab_size
    norm = 2 * C if config.model_type == "gpt2" else C  # weight and bias, or weight
    biases = 0
    if config.attention_bias:
        biases += (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim + C
    if config.mlp_bias:
        biases += F + C if config.model_type == "gpt2" else 2 * F + C
    block = _matrix_parameters_per_block(config) + biases + 2 * norm
    embeddings = V * C if config.tie_word_embeddings else 2 * V * C
    if config.model_type == "gpt2":
        embeddings += config.max_position_embeddings * C
    return embeddings + config.num_hidden_layers * block + norm


def flops_per_token(config: ModelConfig, sequence_length: int) -> int:
    """Floating-point operations of one training token, forward and backward: 6 N + 12 · layers · H · D · T.

    N counts the weights of matrix products (with the output matrix, without look-ups, norms and biases): each is used in
    one multiplication and one addition forward, and in two of each backward. The second term is the attention's two
    products of T × T; as is usual, the half that the causal mask discards is counted.
    """
    N = (
        config.num_hidden_layers * _matrix_parameters_per_block(config)
        + config.vocab_size * config.hidden_size
    )
    attention = config.num_hidden_layers * config.num_attention_heads * config.head_dim * sequence_length
    return 6 * N + 12 * attention


def _matrix_parameters_per_block(config: ModelConfig) -> int:
    """Weights of the projections of one block, without biases and norms."""
    C, D = config.hidden_size, config.head_dim
    attention = C * D * (2 * config.num_attention_heads + 2 * config.num_key_value_heads)  # q, o and k, v
    matrices = 2 if config.model_type == "gpt2" else 3
    return attention + matrices * C * config.intermediate_size

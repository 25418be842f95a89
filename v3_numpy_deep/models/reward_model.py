"""A language model that grades instead of writing: the output matrix of V rows becomes one row, and its output a score.

The score of a text is read at its last token, the only one that has seen all of it (Stiennon et al. 2020, section 3.4;
Ouyang et al. 2022, section 3.5). Read at every token, the same model is PPO's value model. Which token is the last one
under padding is the trap of this file, and `padding.py` answers it. Theory: reward_model.md.

Level 1: transformers' `GPT2ForSequenceClassification` and `LlamaForSequenceClassification` with one label; the parameters
here carry their names. Level 2: the same class over torch, with mixed precision.

    python -c "import numpy as np; from v3_numpy_deep.models.reward_model import *; print(RewardModel.from_transformer(Transformer(ModelConfig()), 0)(np.zeros((2, 4), int)))"
"""

import copy
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from safetensors.numpy import save

from shared_data.errors import UserError
from shared_data.files import atomic_write, read_json, write_json
from shared_data.model_files.config import ModelConfig
from shared_data.model_files.initialization import parameter_shapes
from v3_numpy_deep.autograd import Array, Module, Tensor
from v3_numpy_deep.autograd.fused.attention import document_tiles, plan_tiles
from v3_numpy_deep.models.blocks.attention import SharedInputs, document_mask, padding_mask
from v3_numpy_deep.models.blocks.linear import Linear
from v3_numpy_deep.models.checkpoint import _TOKENIZER_FILES, _read_shapes, _read_tensor, _tensor_files
from v3_numpy_deep.models.padding import _put, hidden_states_of_rows, last_positions
from v3_numpy_deep.models.transformer import Gpt2Body, LlamaBody, Transformer

_ARCHITECTURES = {"gpt2": "GPT2ForSequenceClassification", "llama": "LlamaForSequenceClassification"}


class RewardModel(Module):
    """The body of a GPT-2 or Llama model, and `score`, the direction in its hidden states along which replies are better."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.dropout_generator = np.random.default_rng(0)
        if config.model_type == "gpt2":
            self.transformer = Gpt2Body(config)
        else:
            self.model = LlamaBody(config)
        self.score = Linear(config.hidden_size, 1, bias=False)

    @classmethod
    def from_transformer(cls, model: Transformer, seed: int) -> "RewardModel":
        """A copy of the language model's body with a new, random `score`; the same seed gives the same at all levels."""
        reward_model = cls(model.config)
        name = "transformer" if model.config.model_type == "gpt2" else "model"
        setattr(reward_model, name, copy.deepcopy(getattr(model, name)))
        reward_model.score.weight.data = initial_score(model.config, seed).astype(model.lm_head.weight.dtype)
        return reward_model

    def hidden_states(
        self,
        input_ids: Int[Array, "B T"],
        position_ids: Int[Array, "#B T"] | None = None,
        document_ids: Int[Array, "B T"] | None = None,
        attention_mask: Int[Array, "B T"] | Bool[Array, "B T"] | None = None,
        read: Bool[Array, "B T"] | None = None,
        branch_ids: Int[Array, "B T"] | None = None,
    ) -> Float[Tensor, "*rows C"]:
        """What `score` reads: the residual stream after the last norm; arguments as of `Transformer.hidden_states`.

        Raises `UserError` for a text that is too long.
        """
        T, limit = input_ids.shape[1], self.config.max_position_embeddings
        if limit < T:
            raise UserError(
                f"{T} tokens are more than the model's {limit} positions; shorten the "
                "text or use a model with a larger max_position_embeddings"
            )
        if position_ids is None:
            position_ids = np.arange(T)[None]
        dtype = self.score.weight.dtype.type
        mask = None if attention_mask is None else padding_mask(attention_mask, T, dtype)
        if document_ids is not None and self.training and self.config.attention_dropout > 0:
            # Only attention dropout needs it; the kernel has the tiles.
            mask = document_mask(document_ids, dtype, branch_ids)
        shared = SharedInputs(
            mask=mask,
            generator=self.dropout_generator if self.training else None,
            tiles=plan_tiles(mask, T, T)
            if document_ids is None
            else document_tiles(document_ids, branch_ids),
            read=read,
        )
        return self._body(input_ids, position_ids, shared)

    def scores(
        self,
        input_ids: Int[Array, "B T"],
        attention_mask: Int[Array, "B T"] | Bool[Array, "B T"] | None = None,
        read: Bool[Array, "B T"] | None = None,
    ) -> Float[Tensor, "B T"]:
        """A score for every prefix of every text; those at padding mean nothing. With `read`, 0 at all other positions."""
        scores = self._score(hidden_states_of_rows(self, input_ids, attention_mask, read))
        return scores if read is None else _put(scores, read)

    def forward(
        self,
        input_ids: Int[Array, "B T"],
        attention_mask: Int[Array, "B T"] | Bool[Array, "B T"] | None = None,
    ) -> Float[Tensor, "B"]:
        """The score of each text, read at its last real token; without a mask, all tokens are real."""
        last = last_positions(np.ones_like(input_ids) if attention_mask is None else attention_mask)
        read = np.arange(input_ids.shape[1]) == last[:, None]
        return self._score(hidden_states_of_rows(self, input_ids, attention_mask, read))

    @property
    def _body(self) -> Module:
        return self.transformer if self.config.model_type == "gpt2" else self.model

    def _score(self, hidden: Tensor) -> Tensor:
        return self.score(hidden).reshape(*hidden.shape[:-1])


def initial_score(config: ModelConfig, seed: int) -> Float[np.ndarray, "1 C"]:
    """Random numbers for `score.weight`, as small as every other matrix, from a stream of their own (initialization.py)."""
    generator = np.random.default_rng([seed, zlib.crc32(b"score.weight")])
    return generator.standard_normal((1, config.hidden_size), np.float32) * np.float32(
        config.initializer_range
    )


def save_reward_model(
    model: RewardModel, folder: Path | str, tokenizer_folder: Path | str | None = None
) -> None:
    """Write the model as a Hugging Face folder, which `AutoModelForSequenceClassification.from_pretrained` loads.

    The library finds the last token of a row by comparing ids with `pad_token_id`, so that is written too, as the
    tokenizer names it. Each file appears whole or not at all.
    """
    folder = Path(folder)
    weights = dict(model.named_parameters())
    tensors = {name: np.ascontiguousarray(weights[name].data) for name in _shapes(model.config)}
    with atomic_write(folder / "model.safetensors") as file:
        file.write(save(tensors, metadata={"format": "pt"}))
    dtype = str(model.score.weight.dtype)
    write_json(folder / "config.json", _hf_config(model.config, dtype, tokenizer_folder))
    if tokenizer_folder is not None:
        for name in _TOKENIZER_FILES:
            source = Path(tokenizer_folder) / name
            if source.is_file():
                with atomic_write(folder / name) as file:
                    file.write(source.read_bytes())


def load_reward_model(folder: Path | str, dtype: type | None = None, device: str = "cpu") -> RewardModel:
    """Read a Hugging Face folder of a sequence classifier with one label. `dtype` None keeps float32 and float64.

    Raises `UserError` for a language model, a classifier with more labels, a missing or wrongly shaped tensor.
    """
    assert device == "cpu", "NumPy computes on the CPU"
    folder = Path(folder)
    description = read_json(folder / "config.json")
    stored = {
        name: (path, shape) for path in _tensor_files(folder) for name, shape in _read_shapes(path).items()
    }
    config = _check_reward_folder(folder, description, {name: shape for name, (_, shape) in stored.items()})
    model = RewardModel(config)
    for name, parameter in model.named_parameters():
        tensor = _read_tensor(stored[name][0], name)
        parameter.data = tensor if dtype is None else tensor.astype(dtype, copy=False)
    return model


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter of a reward model: those of the language model, with `score` in place of the output matrix."""
    shapes = parameter_shapes(config)
    shapes.pop("lm_head.weight", None)
    return shapes | {"score.weight": (1, config.hidden_size)}


def _hf_config(config: ModelConfig, dtype: str, tokenizer_folder: Path | str | None) -> dict[str, Any]:
    """The contents of config.json. One label is regression: the output is a number, not a class."""
    return config.to_hf() | {
        "architectures": [_ARCHITECTURES[config.model_type]],
        "dtype": dtype,
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "pad_token_id": None if tokenizer_folder is None else _pad_token_id(Path(tokenizer_folder)),
    }


def _pad_token_id(tokenizer_folder: Path) -> int | None:
    """The id of the token that tokenizer_config.json names for padding; None where there is none."""
    names, tokens = tokenizer_folder / "tokenizer_config.json", tokenizer_folder / "tokenizer.json"
    if not (names.is_file() and tokens.is_file()):
        return None
    pad = read_json(names).get("pad_token")
    pad = pad.get("content") if isinstance(pad, dict) else pad
    added = {token["content"]: token["id"] for token in read_json(tokens).get("added_tokens", [])}
    return added.get(pad)


def _check_reward_folder(
    folder: Path, description: dict[str, Any], found: dict[str, tuple[int, ...]]
) -> ModelConfig:
    """The configuration, once everything in the folder fits it; `UserError` where something does not."""
    config = ModelConfig.from_hf(description)
    labels = len(description.get("id2label", {"0": ""}))
    if "score.weight" not in found:
        raise UserError(
            f"{folder} has no score.weight, so it is a language model; train a reward model from it with `reward`"
        )
    if labels != 1:
        raise UserError(
            f"{folder} classifies into {labels} labels, a reward model has one; choose another folder"
        )
    for name, shape in _shapes(config).items():
        if found.get(name) != shape:
            has = "is missing" if name not in found else f"has shape {list(found[name])}"
            raise UserError(
                f"{folder}: tensor {name} {has}, but config.json asks for {list(shape)}; copy both from one place"
            )
    return config

"""Preference pairs, and trl's trainers built around tiny models of ours: nothing is downloaded, nothing is trained."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from shared_data.model_files.config import ModelConfig as ArrayConfig
from tests.parity.model_cases import LibraryModel, LibraryRewardModel, config_of
from v2_handwritten.models.reward_model import RewardModel
from v2_handwritten.models.transformer import Transformer
from v3_numpy_deep.models.reward_model import RewardModel as ArrayRewardModel
from v3_numpy_deep.models.transformer import Transformer as ArrayTransformer

V, PAD, END = 96, 95, 3  # of the cases in model_cases.py; the last id of the vocabulary is padding here
LENGTHS = [(4, 5, 2), (1, 3, 7), (6, 1, 4)]  # prompt, chosen, rejected


def pairs() -> list[tuple[list[int], list[int], list[int]]]:
    """Three pairs of (prompt, chosen, rejected) of different lengths; replies end as real ones do."""
    generator = np.random.default_rng(3)
    rows = [[generator.integers(5, PAD, length).tolist() for length in lengths] for lengths in LENGTHS]
    return [(prompt, [*chosen, END], [*rejected, END]) for prompt, chosen, rejected in rows]


def reward_trio(
    library: LibraryModel, model: Transformer, arrays: ArrayTransformer, seed: int = 0
) -> tuple[LibraryRewardModel, RewardModel, ArrayRewardModel]:
    """Reward models of the library and levels 2 and 3 with the bodies of these language models and the same random score."""
    theirs = LibraryRewardModel(library, seed, PAD)
    return theirs, RewardModel.from_transformer(model, seed), ArrayRewardModel.from_transformer(arrays, seed)


def array_config(case: str) -> ArrayConfig:
    """Level 3's configuration of a case."""
    return ArrayConfig.from_hf(config_of(case).to_hf())


def reward_trainer(model: LibraryRewardModel, folder: Path, **options: Any) -> Any:
    """trl's RewardTrainer, in evaluation mode so that nothing is dropped."""
    from trl import RewardConfig, RewardTrainer

    records = [
        {"chosen_ids": prompt + chosen, "rejected_ids": prompt + rejected}
        for prompt, chosen, rejected in pairs()
    ]
    arguments = RewardConfig(**_COMMON, output_dir=str(folder), **options)
    trainer = RewardTrainer(
        model.library, arguments, train_dataset=_dataset(records), processing_class=_tokenizer()
    )
    model.library.double().eval()
    return trainer


def dpo_trainer(model: LibraryModel, reference: LibraryModel, folder: Path, **options: Any) -> Any:
    """trl's DPOTrainer, in evaluation mode so that nothing is dropped."""
    from trl import DPOConfig, DPOTrainer

    arguments = DPOConfig(**_COMMON, output_dir=str(folder), **options)
    trainer = DPOTrainer(
        model.library,
        reference.library,
        arguments,
        train_dataset=_dataset([{"prompt": "t5", "chosen": " t6", "rejected": " t7"}]),  # it insists on text
        processing_class=_tokenizer(),
    )
    model.library.double().eval()
    reference.library.double().eval()
    return trainer


def trl_batch(trainer: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the trainer's collator makes of records, in double precision."""
    batch = trainer.data_collator(rows)
    return {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}


def trl_metrics(trainer: Any) -> dict[str, float]:
    """What the trainer would log of its last `compute_loss`."""
    metrics = {name: values[-1] for name, values in trainer._metrics["eval"].items()}
    trainer._metrics["eval"].clear()
    return metrics


_COMMON: dict[str, Any] = {
    "report_to": [],
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "max_length": None,
}


def _dataset(records: list[dict[str, Any]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(records)


def _tokenizer() -> PreTrainedTokenizerFast:
    """Words t0, t1, …: the trainers want a tokenizer, the records are ids already."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({f"t{id}": id for id in range(V)}, unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token=f"t{PAD}", eos_token=f"t{END}")


def right_padded(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Ids [B, T] and attention mask of rows of different lengths."""
    T = max(map(len, rows))
    ids = np.array([row + [PAD] * (T - len(row)) for row in rows])
    mask = np.array([[1] * len(row) + [0] * (T - len(row)) for row in rows])
    return ids, mask


def doubles(x: np.ndarray) -> torch.Tensor:
    """A float64 leaf that wants a gradient."""
    return torch.from_numpy(x.copy()).requires_grad_()

"""Preference pairs as ids, models of both levels and the library around them, and trl's trainers; nothing is downloaded."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from shared_data.alignment.pair_batches import Pair, PairBatch, pad_pairs
from tests.parity.arrays import array
from tests.parity.inference_cases import trio
from tests.parity.model_cases import LibraryModel, config_of, library_config
from tests.parity.training_cases import level_module
from v2_handwritten.models.reward_model import RewardModel
from v2_handwritten.models.transformer import Transformer
from v3_numpy_deep.models.reward_model import RewardModel as ArrayRewardModel
from v3_numpy_deep.models.transformer import Transformer as ArrayTransformer

V, PAD, END = 96, 95, 3  # of the cases in model_cases.py; the last id of the vocabulary is padding here
LENGTHS = [(4, 5, 2), (1, 3, 7), (6, 1, 4)]  # prompt, chosen, rejected


def pairs() -> list[Pair]:
    """Three pairs of (prompt, chosen, rejected) of different lengths; completions end as real ones do."""
    generator = np.random.default_rng(3)
    rows = [[generator.integers(5, PAD, length).tolist() for length in lengths] for lengths in LENGTHS]
    return [(prompt, [*chosen, END], [*rejected, END]) for prompt, chosen, rejected in rows]


def pair_batch(given: Sequence[Pair], margins: Sequence[float] | None = None) -> PairBatch:
    """Pairs as one batch."""
    values = np.zeros(len(given)) if margins is None else np.array(margins)
    return PairBatch(*pad_pairs(given, PAD, 32), np.arange(len(given)), values)  # type: ignore[arg-type]


def moved_trios(case: str) -> tuple[list[Any], list[Any]]:
    """Policies of the library and of levels 2 and 3, moved away from their references, and these."""
    policies: tuple[LibraryModel, Transformer, ArrayTransformer] = trio(case)
    references = list(trio(case))
    library, model, arrays = policies
    with torch.no_grad():
        for seed, (name, parameter) in enumerate(model.named_parameters()):
            change = array(seed, *parameter.shape, scale=0.03)
            parameter += torch.from_numpy(change)
            dict(library.library.named_parameters())[name] += torch.from_numpy(change)
            dict(arrays.named_parameters())[name].data += change
    return list(policies), [references[0], *(each.eval() for each in references[1:])]


def reward_trio(case: str) -> tuple[Any, RewardModel, ArrayRewardModel]:
    """Reward models of the library and levels 2 and 3 with the same weights, the `score` among them, in evaluation mode."""
    _, model, arrays = trio(case)
    ours, theirs = RewardModel.from_transformer(model, 0), ArrayRewardModel.from_transformer(arrays, 0)
    config = library_config(config_of(case))
    config.num_labels, config.pad_token_id = 1, PAD
    library = AutoModelForSequenceClassification.from_config(config).double()
    library.load_state_dict(ours.state_dict())
    return library.eval(), ours.eval(), theirs.eval()


def preference_loss(level: str, policy: Any, reference: Any, batch: PairBatch, **options: Any) -> Any:
    """The loss of `dpo_train.py` on a batch, and its metrics."""
    train, B = level_module(level, "align.dpo_train"), batch.num_items
    found, fixed = train.pair_log_probs(policy, batch), train.pair_log_probs(reference, batch)
    lengths: Any = batch.completion_lengths
    fixed, lengths = (fixed.detach(), torch.from_numpy(lengths)) if level == "v2" else (fixed.data, lengths)
    halves = [part for both in (found, fixed) for part in (both[:B], both[B:])]
    counts = {"chosen_lengths": lengths[:B], "rejected_lengths": lengths[B:]}
    return level_module(level, "align.algorithms.dpo").dpo_loss(*halves, **options, **counts)


def reward_loss_of(level: str, model: Any, batch: PairBatch, coefficient: float | None = None) -> Any:
    """The loss of `rm_train.py` on a batch, and its metrics."""
    scores, B = level_module(level, "align.rm_train").pair_scores(model, batch), batch.num_items
    margins: Any = torch.from_numpy(batch.margins) if level == "v2" else batch.margins
    loss = level_module(level, "align.algorithms.reward_loss").reward_loss
    return loss(scores[:B], scores[B:], margins, coefficient)


def reward_trainer(library: Any, folder: Path, **options: Any) -> Any:
    """trl's RewardTrainer, in evaluation mode so that nothing is dropped."""
    from trl import RewardConfig, RewardTrainer

    arguments = RewardConfig(**_COMMON, output_dir=str(folder), **options)
    trainer = RewardTrainer(
        library, arguments, train_dataset=_dataset(reward_records(pairs())), processing_class=_tokenizer()
    )
    library.double().eval()
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


def reward_records(given: Sequence[Pair]) -> list[dict[str, Any]]:
    """Pairs as the RewardTrainer has them."""
    return [
        {"chosen_ids": prompt + chosen, "rejected_ids": prompt + rejected}
        for prompt, chosen, rejected in given
    ]


def dpo_records(given: Sequence[Pair]) -> list[dict[str, Any]]:
    """Pairs as the DPOTrainer has them."""
    return [dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), pair, strict=True)) for pair in given]


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


def scaled_gradients(model: Any, expected: Any) -> np.ndarray:
    """All gradients of a model in a row, each divided by the largest element of the expected one."""
    found, wanted = (
        {name: np.asarray(parameter.grad) for name, parameter in each.named_parameters()}
        for each in (model, expected)
    )
    assert found.keys() == wanted.keys()
    return np.concatenate([np.ravel(found[name] / np.abs(wanted[name]).max()) for name in wanted])


def lockstep(
    models: dict[str, Any], losses: dict[str, Callable[[int], Any]], steps: int, learning_rate: float = 1e-3
) -> dict[str, np.ndarray]:
    """The losses of training models side by side, each with the AdamW of its level; "v1" is the library, with torch's.

    losses: the loss of a step, by its number.
    """
    betas, decay = (0.9, 0.95), 0.1
    curves: dict[str, list[float]] = {level: [] for level in models}
    optimizers: dict[str, Any] = {}
    for level, model in models.items():
        parameters = list(model.parameters())
        if level == "v1":
            optimizers[level] = torch.optim.AdamW(parameters, learning_rate, betas, 1e-8, decay)
        else:
            group = {"parameters": parameters, "weight_decay": decay}
            adamw = level_module(level, "pretrain.components.optimizers").AdamW
            optimizers[level] = adamw([group], learning_rate, betas, 1e-8)
    for step in range(steps):
        for level, optimizer in optimizers.items():
            loss = losses[level](step)
            curves[level].append(loss.item())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return {level: np.array(curve) for level, curve in curves.items()}


def doubles(x: np.ndarray) -> torch.Tensor:
    """A float64 leaf that wants a gradient."""
    return torch.from_numpy(x.copy()).requires_grad_()

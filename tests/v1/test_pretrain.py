"""Level 1: the Trainer sees exactly our batches."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments

from shared_data.errors import UserError
from shared_data.settings import PretrainSettings
from tests.parity.test_data_loader import documents, loader, write_tokens
from tests.parity.test_training_loop import Level
from v1_quick.pretrain.components.training_loop import _collator


def test_the_trainers_own_data_loader_yields_our_batches(tmp_path: Path) -> None:
    path = write_tokens(tmp_path, documents(0, 90))
    ours, theirs = loader("v1_quick", path), loader("v1_quick", path)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        max_steps=9,
        use_cpu=True,
        remove_unused_columns=False,
    )
    trainer = Trainer(torch.nn.Linear(1, 1), arguments, train_dataset=theirs, data_collator=_collator(True))
    batches = iter(trainer.get_train_dataloader())
    for _ in range(2 * ours.num_sequences // 4):
        expected, actual = ours.next_batch(), next(batches)
        for name in ("input_ids", "labels", "position_ids"):
            np.testing.assert_array_equal(actual[name].numpy(), getattr(expected, name))
        assert actual["shift_labels"] is actual["labels"] or torch.equal(
            actual["shift_labels"], actual["labels"]
        )


def test_the_configuration_keeps_its_cache_after_training(tmp_path: Path) -> None:
    made = Level("v1_quick")
    made.train(write_tokens(tmp_path, documents(0, 60)), steps=1)
    assert made.inner.config.use_cache, "generation would be slow with every saved model"


def test_float16_needs_a_gpu(tmp_path: Path) -> None:
    assert PretrainSettings(precision="float16").precision == "float16"
    with pytest.raises(UserError, match="float16 on GPUs only"):
        Level("v1_quick").train(write_tokens(tmp_path, documents(0, 60)), precision="float16")

"""Small models of levels 2 and 3 and what trains them, side by side."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shared_data.metrics_log import MetricsLog
from shared_data.model_files.config import ModelConfig
from shared_data.runs import RunFolder
from shared_data.settings import ModelSettings, load_settings
from shared_data.training.data_loader import Batch, PackedDocuments
from tests.parity.recorder import as_array
from tests.shared_data.test_data_loader import END

PACKAGES = {"v2": "v2_handwritten", "v3": "v3_numpy_deep"}
LEVELS = tuple(PACKAGES)
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


def level_module(level: str, name: str) -> Any:
    """A module of a level."""
    return importlib.import_module(f"{PACKAGES[level]}.{name}")


def small_config(family: str = "llama", dropout: float = 0.0, **sizes: Any) -> ModelConfig:
    values = SIZES | ({"num_key_value_heads": 2} if family == "llama" else {}) | sizes
    settings = ModelSettings(model_type=family, dropout=dropout, **values)  # type: ignore[arg-type]
    return ModelConfig.from_settings(settings, 97, END)


class Level:
    """A small model of a level, and its training engine."""

    def __init__(
        self, level: str, family: str = "llama", dtype: str = "float32", dropout: float = 0.0, **sizes: Any
    ) -> None:
        self.level, self.engine = level, level_module(level, "pretrain.components.training")
        self.model = level_module(level, "models.transformer").new_model(
            small_config(family, dropout, **sizes)
        )
        self.model.to(getattr(torch if level == "v2" else np, dtype))

    def loss(self, batch: Batch, documents: bool = True) -> Any:
        device = [torch.device("cpu")] if self.level == "v2" else []
        return self.model.loss(**self.engine.model_inputs(batch, *device, documents))

    def fit(self, path: Path, folder: Path, *overrides: str, step: Any = None) -> list[dict[str, Any]]:
        """Train on a token file; the rows of the log, one a step."""
        smoke = [
            "max_steps=3",
            "sequence_length=32",
            "warmup_steps=0",
            "learning_rate=1e-2",
            "logging_steps=1",
        ]
        settings = load_settings("smoke", [f"pretrain.{override}" for override in (*smoke, *overrides)])
        section, run = settings.pretrain, RunFolder(self.level, settings, folder / self.level)
        size, length = section.per_device_train_batch_size, section.sequence_length
        batches = PackedDocuments(path, size, length, END, section.seed)
        step = step or (lambda batch: (self.loss(batch), {}))
        self.engine.Training("pretrain", settings, run).fit(self.model, batches, step)
        return MetricsLog(run.stage("pretrain") / "metrics_log.jsonl").rows()

    def weights(self) -> np.ndarray:
        return flat({name: as_array(parameter) for name, parameter in self.model.named_parameters()})

    def gradients(self) -> np.ndarray:
        return flat({name: as_array(parameter.grad) for name, parameter in self.model.named_parameters()})


def flat(arrays: dict[str, Any]) -> np.ndarray:
    """All numbers in a row, in the order of their names."""
    return np.concatenate([np.ravel(arrays[name]) for name in sorted(arrays)])


def values(rows: list[dict[str, Any]], name: str) -> list[float]:
    """A number of each row that has it."""
    return [row[name] for row in rows if name in row]

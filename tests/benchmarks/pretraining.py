"""Pretraining tokens per second: levels 2 and 3 against the Trainer of transformers, tiny model, the same batches.

Each level runs its own training loop (loader, forward, backward, clipping, AdamW), in rounds that take turns in one process;
what counts is the median over all steps but the first of each round. The optimizer alone is timed too.

    OMP_NUM_THREADS=2 python -m tests.benchmarks.pretraining
"""

import argparse
import importlib
import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shared_data.settings import load_settings

LEVELS = {"v1": "v1_quick", "v2": "v2_handwritten", "v3": "v3_numpy_deep"}
TARGETS = {"v2": 1.5, "v3": 0.8}
VOCABULARY, END = 1536, 0  # not quite as many tokens as tiny has


def write_tokens(folder: Path, count: int = 200_000) -> Path:
    """Random tokens in documents of 40 to 260 tokens, as stories are; what they say does not change the speed."""
    generator = np.random.default_rng(0)
    tokens = generator.integers(1, VOCABULARY, count).astype(np.uint16)
    ends = np.cumsum(generator.integers(40, 260, count // 40))
    tokens[ends[ends < count]] = END
    path = folder / "train.bin"
    tokens.tofile(path)
    facts = {"dtype": "uint16", "tokens": count, "bytes": count, "vocab_size": VOCABULARY}
    path.with_suffix(".json").write_text(json.dumps(facts))
    return path


class Contender:
    """One level, ready to train some steps more."""

    def __init__(self, level: str, path: Path, overrides: list[str]) -> None:
        def module(name: str) -> Any:
            return importlib.import_module(f"{LEVELS[level]}.{name}")

        self.settings = load_settings("tiny", ["pretrain.warmup_steps=0", *overrides])
        section = self.settings.pretrain
        config = module("models.config").ModelConfig.from_settings(self.settings.model, VOCABULARY, END)
        self.model = module("models.transformer").Transformer(config).initialize(0)
        optimizers = module("pretrain.components.optimizers")
        groups = optimizers.parameter_groups(getattr(self.model, "library", self.model), section.weight_decay)
        self.optimizer = optimizers.AdamW(groups, 1e-4, (section.adam_beta1, section.adam_beta2))
        loader = module("pretrain.data_loader").PackedDataLoader
        self.loader = loader(path, section.batch_size, section.sequence_length, END, 0)
        self.loop = module("pretrain.components.training_loop")
        self.state = module("pretrain.components.training_state").TrainingState()
        self.seconds: list[float] = []
        self.optimizer_seconds: list[float] = []

    def round(self, steps: int) -> None:
        """Train some steps and remember how long each but the first took."""
        taken: list[Any] = []
        section = self.settings.pretrain.model_copy(
            update={"steps": self.state.step + steps, "learning_rate": 1e-4}
        )
        self.loop.train(self.model, self.optimizer, self.loader, section, self.state, taken.append)
        self.seconds += [step.seconds for step in taken[1:]]
        self.tokens = taken[-1].tokens

    def time_optimizer(self, repeats: int = 20) -> None:
        """The update alone, on gradients of zeros."""
        for parameter in getattr(self.model, "library", self.model).parameters():
            zeros = parameter.detach() * 0
            parameter.grad = zeros.data if isinstance(zeros.data, np.ndarray) else zeros
        for _ in range(repeats):
            started = time.perf_counter()
            self.optimizer.step()
            self.optimizer_seconds.append(time.perf_counter() - started)
        self.optimizer.zero_grad()


def run(rounds: int = 4, steps: int = 5, overrides: list[str] | None = None) -> list[dict[str, float | str]]:
    """Rows for the table of `python -m tests.benchmarks`: tiny as it is, and the same tokens cut into short rows.

    The long rows are where the levels differ: see "Packed documents" in v2_handwritten/models/blocks/attention.md.
    """
    if overrides:
        return measure(rounds, steps, overrides)
    short = ["pretrain.sequence_length=256", "pretrain.per_device_train_batch_size=6"]
    return [*measure(rounds, steps, []), *measure(rounds, steps, short, ", rows of 256", {})]


def measure(
    rounds: int,
    steps: int,
    overrides: list[str],
    label: str = "",
    targets: Mapping[str, float] = TARGETS,
) -> list[dict[str, float | str]]:
    """Levels 2 and 3 beside level 1, with these settings."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_tokens(Path(folder))
        contenders = {level: Contender(level, path, overrides) for level in LEVELS}
        for _ in range(rounds):
            for each in contenders.values():
                each.round(steps)
        for each in contenders.values():
            each.time_optimizer()
    speed = {level: each.tokens / statistics.median(each.seconds) for level, each in contenders.items()}
    update = {level: 1e3 * statistics.median(each.optimizer_seconds) for level, each in contenders.items()}
    return [
        {
            "what": f"pretraining, tokens/s, {level} ÷ v1 (Trainer){label}",
            f"{level} tokens/s": speed[level],
            "v1 tokens/s": speed["v1"],
            "ratio": speed[level] / speed["v1"],
            "target": targets.get(level, ""),
            f"{level} AdamW ms": update[level],
            "v1 AdamW ms": update["v1"],
        }
        for level in ("v2", "v3")
    ]


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    arguments = parser.parse_args()
    for row in run(arguments.rounds, arguments.steps, arguments.overrides):
        print(
            "  ".join(
                f"{key} {value:,.2f}" if isinstance(value, float) else value for key, value in row.items()
            )
        )


if __name__ == "__main__":
    main()

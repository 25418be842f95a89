"""One training step, forward and backward: level 2 against Hugging Face's model, on the same packed batch.

Both sides run in one process, taking turns, in float32 with the same threads; the ratio of the median times is what counts.
`--profile` prints where level 2 spends its time. The optimizer and the loop around it are measured in `pretraining.py`.

    OMP_NUM_THREADS=2 python -m tests.benchmarks.training_step
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from shared_data.model_files.config import ModelConfig
from tests.parity.model_cases import LibraryModel
from v2_handwritten.models.packing import Packing
from v2_handwritten.models.transformer import Transformer

TINY = {
    "llama": ModelConfig(
        model_type="llama",
        hidden_size=128,
        intermediate_size=352,
        num_attention_heads=4,
        num_key_value_heads=2,
    ),
    "gpt2": ModelConfig(model_type="gpt2", hidden_size=128, num_attention_heads=4),
}


def packed_batch(B: int = 16, T: int = 256, V: int = 1024, seed: int = 0) -> dict[str, Tensor]:
    """Random tokens in documents of 40 to 260 tokens, as stories are."""
    generator = np.random.default_rng(seed)
    documents = np.zeros((B, T), np.int64)
    positions = np.zeros((B, T), np.int64)
    for row in range(B):
        start, number = 0, 0
        while start < T:
            stop = min(T, start + int(generator.integers(40, 260)))
            documents[row, start:stop] = number
            positions[row, start:stop] = np.arange(stop - start)
            start, number = stop, number + 1
    tokens = generator.integers(0, V, (B, T + 1))
    arrays = {
        "input_ids": tokens[:, :-1],
        "labels": tokens[:, 1:],
        "position_ids": positions,
        "document_ids": documents,
    }
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}


def step(model: torch.nn.Module, batch: dict[str, Tensor]) -> float:
    """Forward, loss, backward; returns the loss."""
    model.zero_grad(set_to_none=True)
    packing = Packing.from_documents(batch["document_ids"])
    loss = model.loss(batch["input_ids"], batch["labels"], batch["position_ids"], packing)
    loss.backward()
    return loss.item()


def compare(
    ours: Callable[[], float], theirs: Callable[[], float], repeats: int
) -> tuple[float, float, float]:
    """Median seconds of both sides and the median of the ratios of neighbouring runs, taking turns."""
    ours(), theirs()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for side, run in enumerate((ours, theirs)):
            start = time.perf_counter()
            run()
            times[side].append(time.perf_counter() - start)
    ratios = [b / a for a, b in zip(*times, strict=True)]
    return statistics.median(times[0]), statistics.median(times[1]), statistics.median(ratios)


def run(repeats: int = 10, families: tuple[str, ...] = ("llama", "gpt2")) -> list[dict[str, float | str]]:
    """Rows for the table of `python -m tests.benchmarks`."""
    batch = packed_batch()
    tokens = batch["input_ids"].numel()
    rows: list[dict[str, float | str]] = []
    for family in families:
        config = TINY[family]
        ours = Transformer(config).initialize(0)
        library = LibraryModel(config)
        a, b, ratio = compare(lambda m=ours: step(m, batch), lambda m=library: step(m, batch), repeats)
        rows.append(
            {
                "what": f"training step, {family}, packed, v2 ÷ v1 in tokens/s",
                "v2 tokens/s": tokens / a,
                "v1 tokens/s": tokens / b,
                "ratio": ratio,
            }
        )
    return rows


def profile(family: str) -> None:
    """Print level 2's operations by time."""
    model, batch = Transformer(TINY[family]).initialize(0), packed_batch()
    for _ in range(3):
        step(model, batch)
    with torch.profiler.profile(record_shapes=True) as recorded:
        for _ in range(3):
            step(model, batch)
    print(recorded.key_averages(group_by_input_shape=True).table(sort_by="self_cpu_time_total", row_limit=45))


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--family", choices=["llama", "gpt2"], action="append")
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    families = tuple(arguments.family or ("llama", "gpt2"))
    if arguments.profile:
        for family in families:
            profile(family)
        return
    for row in run(arguments.repeats, families):
        print(
            "  ".join(
                f"{key} {value:,.2f}" if isinstance(value, float) else value for key, value in row.items()
            )
        )


if __name__ == "__main__":
    main()

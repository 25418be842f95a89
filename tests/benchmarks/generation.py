"""Tokens a second of greedy generation with a key-value cache, one prompt: levels 2 and 3 against transformers' `generate`.

All sides run in one process, taking turns, in float32 with the same threads and the same weights; each generates the same
200 tokens, its preparation (prefill) included. What counts is the median of the ratios of neighbouring runs.

    OMP_NUM_THREADS=2 python -m tests.benchmarks.generation
"""

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from tests.benchmarks.training_step import TINY
from v1_quick.inference.generate import generate as generate_v1
from v1_quick.models.transformer import new_model as new_model_v1
from v2_handwritten.inference.generate import generate as generate_v2
from v2_handwritten.models.transformer import new_model as new_model_v2
from v3_numpy_deep.inference.generate import generate as generate_v3
from v3_numpy_deep.models.transformer import new_model as new_model_v3

PROMPT = [0, 5, 9, 17, 33]
NEW_TOKENS = 200


def sides(family: str, rows: int) -> dict[str, Callable[[], list[list[int]]]]:
    """Generation by each level from the same weights, as functions without arguments."""
    levels: dict[str, tuple[Callable[..., list[list[int]]], Callable[..., Any]]] = {
        "v1": (generate_v1, new_model_v1),
        "v2": (generate_v2, new_model_v2),
        "v3": (generate_v3, new_model_v3),
    }
    options: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "eos_token_id": []}
    return {
        name: partial(generate, new_model(TINY[family], 0), [PROMPT] * rows, **options)
        for name, (generate, new_model) in levels.items()
    }


def compare(family: str, rows: int = 1, repeats: int = 7) -> dict[str, Any]:
    """Median seconds a token of each level, and the median ratios to level 1, taking turns."""
    levels = sides(family, rows)
    ids = [generate() for generate in levels.values()]  # a first run, to warm up
    assert ids[0] == ids[1], "what is faster must write the same"
    seconds: dict[str, list[float]] = {name: [] for name in levels}
    for _ in range(repeats):
        for name, generate in levels.items():
            started = time.perf_counter()
            generate()
            seconds[name].append(time.perf_counter() - started)
    ratios = {
        name: statistics.median(a / b for a, b in zip(seconds["v1"], seconds[name], strict=True))
        for name in ("v2", "v3")
    }
    per_token = {name: statistics.median(times) / NEW_TOKENS / rows for name, times in seconds.items()}
    return {"ratios": ratios, "seconds_per_token": per_token}


def run() -> Iterator[dict[str, Any]]:
    """One row a family and level, for `python -m tests.benchmarks`."""
    for family, rows in (("llama", 1), ("gpt2", 1), ("llama", 16)):
        measured = compare(family, rows)
        for level, ratio in measured["ratios"].items():
            yield {
                "what": f"generation with cache, {family}, batch {rows}: {level} ÷ HF generate, tokens/s",
                "ratio": ratio,
                "target": 5.0 if (level, rows) == ("v2", 1) else "",
                "tokens_per_second": 1 / measured["seconds_per_token"][level],
                "tokens_per_second_of_HF": 1 / measured["seconds_per_token"]["v1"],
                "threads": torch.get_num_threads(),
            }


if __name__ == "__main__":
    for row in run():
        print(
            f"{row['ratio']:6.2f}  {row['what']}  "
            f"({row['tokens_per_second']:,.0f} against {row['tokens_per_second_of_HF']:,.0f})"
        )

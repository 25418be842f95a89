"""Items a second of a 4-choice benchmark: the harness of levels 2 and 3 against lm-evaluation-harness on the same items and model.

All sides run in one process, taking turns, in float32 with the same threads, weights and batch size. Measured is everything from the items in
memory to the scores, tokenization included; loading the model and reading the file are not. lm-evaluation-harness makes its requests
once, outside of the measurement, which favours it.

    OMP_NUM_THREADS=2 python -m tests.benchmarks.benchmark_harness
"""

import contextlib
import io
import json
import logging
import os
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from shared_data.benchmarks.evaluation import Files, evaluate_tasks
from shared_data.settings import BenchmarkSettings, DataSettings
from shared_data.story_world.tasks import multiple_choice
from tests.benchmarks.training_step import TINY
from v1_quick.models.checkpoint import load_model as load_model_v1
from v2_handwritten.data_pipeline.tokenizer.bpe_train import train_bpe
from v2_handwritten.evaluation.benchmarks.log_likelihoods import log_likelihoods as log_likelihoods_v2
from v2_handwritten.inference.generate import generate as generate_v2
from v2_handwritten.models.checkpoint import load_model as load_model_v2
from v2_handwritten.models.checkpoint import save_model
from v2_handwritten.models.transformer import new_model
from v3_numpy_deep.evaluation.benchmarks.log_likelihoods import log_likelihoods as log_likelihoods_v3
from v3_numpy_deep.inference.generate import generate as generate_v3
from v3_numpy_deep.models.checkpoint import load_model as load_model_v3

ITEMS = 64
BATCH_SIZE = 16


def write_model_and_items(folder: Path, kind: str) -> None:
    """A model of the size of `tiny` with random weights, its tokenizer, and items in the format of ARC or MMLU."""
    choices = list(islice(multiple_choice(0, "test"), ITEMS))
    tokenizer = train_bpe(
        [item.prompt for item in choices], TINY["llama"].vocab_size, special_tokens=["<|endoftext|>"]
    )
    tokenizer.save(folder)
    save_model(new_model(TINY["llama"], 0), folder, folder)
    rows: list[dict[str, Any]] = []
    for number, item in enumerate(choices):
        options = list(item.choices)
        if kind == "arc_easy":
            listed = {"text": options, "label": ["A", "B", "C", "D"]}
            rows.append(
                {
                    "id": str(number),
                    "question": item.prompt,
                    "choices": listed,
                    "answerKey": "ABCD"[item.answer],
                }
            )
        else:
            rows.append({"question": item.prompt, "subject": "", "choices": options, "answer": item.answer})
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def sides(folder: Path, task: str) -> dict[str, Callable[[], dict[str, float]]]:
    """Each side as a function that returns its scores."""
    section = BenchmarkSettings(tasks=[task], limit=None, batch_size=BATCH_SIZE, apply_chat_template=False)
    files, data = Files((f"{task}={folder / 'items.jsonl'}",)), DataSettings()
    from v2_handwritten.data_pipeline.tokenizer.tokenizer import load_tokenizer as load_tokenizer_v2
    from v3_numpy_deep.data_pipeline.tokenizer.tokenizer import load_tokenizer as load_tokenizer_v3

    def level(
        log_likelihoods: Any, generate: Any, model: Any, tokenizer: Any
    ) -> Callable[[], dict[str, float]]:
        options = (model, tokenizer, section, data, files, "")
        return lambda: evaluate_tasks(log_likelihoods, generate, *options)[task]  # type: ignore[return-value]

    return {
        "lm_eval": library(folder, task),
        "v2": level(log_likelihoods_v2, generate_v2, load_model_v2(folder), load_tokenizer_v2(folder)),
        "v3": level(log_likelihoods_v3, generate_v3, load_model_v3(folder), load_tokenizer_v3(folder)),
    }


def library(folder: Path, task: str) -> Callable[[], dict[str, float]]:
    """lm-evaluation-harness on the same items."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoTokenizer

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    import lm_eval.tasks

    root = Path(lm_eval.tasks.__file__).parent
    manager = TaskManager(include_path=[root / "arc", root / "mmlu/default"], include_defaults=False)
    splits = {"training_split": None, "validation_split": None, "test_split": "train", "fewshot_split": None}
    options = {"data_files": str(folder / "items.jsonl")}
    own = {"task": task, "dataset_path": "json", "dataset_name": None, "dataset_kwargs": options, **splits}
    loaded = manager.load([{"group": "local", "task": [own]}])
    loaded["tasks"][task].set_config("num_fewshot", 0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = HFLM(pretrained=load_model_v1(folder), tokenizer=tokenizer, batch_size=BATCH_SIZE)
    return lambda: evaluate(model, loaded, bootstrap_iters=0)["results"][task]


def compare(task: str, repeats: int = 7) -> dict[str, Any]:
    """Median seconds of each side, and the median ratios to lm-evaluation-harness, taking turns."""
    with (
        TemporaryDirectory() as name,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        write_model_and_items(Path(name), task)
        evaluations = sides(Path(name), task)
        scores = {side: evaluate() for side, evaluate in evaluations.items()}  # a first run, to warm up
        assert scores["v2"]["acc"] == scores["v3"]["acc"] == scores["lm_eval"]["acc,none"]
        seconds: dict[str, list[float]] = {side: [] for side in evaluations}
        for _ in range(repeats):
            for side, evaluate in evaluations.items():
                started = time.perf_counter()
                evaluate()
                seconds[side].append(time.perf_counter() - started)
    ratios = {
        side: statistics.median(a / b for a, b in zip(seconds["lm_eval"], seconds[side], strict=True))
        for side in ("v2", "v3")
    }
    return {
        "ratios": ratios,
        "per_second": {side: ITEMS / statistics.median(all) for side, all in seconds.items()},
    }


def run() -> Iterator[dict[str, Any]]:
    """One row a benchmark and level, for `python -m tests.benchmarks`."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    for task, choices in (("arc_easy", "choices as texts"), ("mmlu_anatomy", "letters")):
        measured = compare(task)
        for level, ratio in measured["ratios"].items():
            yield {
                "what": f"benchmark harness, 4 {choices}: {level} ÷ lm-evaluation-harness, items/s",
                "ratio": ratio,
                "target": 1.5,
                "items_per_second": measured["per_second"][level],
                "items_per_second_of_lm_eval": measured["per_second"]["lm_eval"],
                "threads": torch.get_num_threads(),
            }


if __name__ == "__main__":
    for row in run():
        print(
            f"{row['ratio']:6.2f}  {row['what']}  "
            f"({row['items_per_second']:,.1f} against {row['items_per_second_of_lm_eval']:,.1f})"
        )

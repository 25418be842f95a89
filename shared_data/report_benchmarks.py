"""The section of the report about benchmarks: scores with error bars, and one item with what the model thought of its choices.

from shared_data.report_benchmarks import benchmarks
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from shared_data import report_html as html
from shared_data.benchmarks.stage import ITEMS, SCORES
from shared_data.progress import format_metric
from shared_data.report_examples import example
from shared_data.runs import RunFolder
from shared_data.state_schema import Scores, read_state

_NORMAL_95 = 1.96  # standard errors on each side that hold the true value 95 times of 100


def benchmarks(run: RunFolder) -> Iterator[str]:
    """Nothing where the stage `benchmark` has not finished, or had no task."""
    folder = run.path / "benchmark"
    if "benchmark" not in run.metrics() or not (folder / SCORES).is_file():
        return
    tasks = read_state(folder / SCORES, Scores, "benchmark")["tasks"]
    yield html.heading("Benchmarks")
    yield html.paragraph(
        "Multiple choice by log-likelihood: the model writes nothing; the choice to which it gives the highest probability is its answer "
        "(acc), or the highest per character (acc_norm). Generated answers count when they match exactly. The error bar is the standard error: "
        "with so few items, scores whose intervals overlap may well be equal."
    )
    rows = [row for task, scores in tasks.items() for row in _rows(task, scores)]
    yield html.table(rows, ("benchmark", "score", "standard error", "95 % interval", "items"), numbers=True)
    yield from _example(run)


def _rows(task: str, scores: Mapping[str, Any]) -> Iterator[list[str]]:
    """A row a metric."""
    for metric, value in scores.items():
        if metric == "n" or metric.endswith("_stderr"):
            continue
        name, error = f"{task}_{metric}", scores.get(f"{metric}_stderr")
        bar = interval = "–"
        if error is not None:
            ends = (value - _NORMAL_95 * error, value + _NORMAL_95 * error)
            bar, interval = format_metric(name, error), " to ".join(format_metric(name, end) for end in ends)
        yield [f"{task}: {metric}", format_metric(name, value), bar, interval, f"{scores['n']:,}"]


def _example(run: RunFolder) -> Iterator[str]:
    """The first item of multiple choice that was answered wrong, else the first."""
    lines = (run.path / "benchmark" / ITEMS).read_text(encoding="utf-8").splitlines()
    items = [item for item in map(json.loads, lines) if item["task"] == "story_world"]
    if not items:
        return
    item = next((item for item in items if not item["acc"]), items[0])
    choices, sums = item["doc"]["choices"], [response[0] for response in item["filtered_resps"]]
    best = sums.index(max(sums))
    rows = []
    for number, (choice, total) in enumerate(zip(choices, sums, strict=True)):
        marks = [mark for mark, at in (("right", item["target"]), ("the model's", best)) if at == number]
        rows.append([" and ".join(marks), choice, f"{total:.3f}", f"{total / len(choice):.4f}"])
    yield "<h3>One item, as the model sees it</h3>"
    yield example(item["doc"]["prompt"], rows, ("", "choice", "ln p", "ln p per character"))

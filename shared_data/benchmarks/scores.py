"""From responses to scores with error bars, as lm-evaluation-harness 0.4.13 computes them.

    acc        1 where the most probable choice is right: argmax ln p;  of equal ones the first counts
    acc_norm   the same with ln p divided by the characters of the choice, since a longer text is less probable
    stderr     of a mean of n items: √(Σ (x - mean)² / (n - 1)) / √n

Theory: v2_handwritten/evaluation/benchmarks/harness.md.

    aggregate("acc", [1.0, 0.0, 1.0, 1.0])    # {"acc": 0.75, "acc_stderr": 0.25}
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from shared_data.benchmarks.batches import LogLikelihood
from shared_data.benchmarks.items import ContinuationItem, GenerationItem, Item, MultipleChoiceItem
from shared_data.benchmarks.tasks import GROUPS, Extraction, Generation, Task

BOOTSTRAP_ITERATIONS = 100_000  # of the standard error of a perplexity
NO_ANSWER = "[invalid]"
WITHOUT_ERROR = ("word_perplexity", "byte_perplexity", "bits_per_byte")  # of all texts together
Value = Any  # of one item: a number, or a pair (log-likelihood, units) that is summed over the items
Scores = dict[str, float | None]


def score_item(task: Task, item: Item, responses: Sequence[Any]) -> dict[str, Value]:
    """The value of each metric of the task for one item. `responses` are `LogLikelihood`s, or one text."""
    if isinstance(item, GenerationItem):
        generation = task.generation
        assert generation is not None, f"{task.name} generates nothing"
        return {
            metric: float(is_same(extract(responses[0], how), item.target, generation))
            for metric, how in generation.extractions.items()
        }
    sums = [LogLikelihood(*response).sum for response in responses]
    if isinstance(item, MultipleChoiceItem):
        values = multiple_choice_values(sums, item.choices, item.gold)
        return {metric: values[metric] for metric in task.metrics}
    if isinstance(item, ContinuationItem):
        return {"perplexity": sums[0], "acc": float(LogLikelihood(*responses[0]).is_greedy)}
    words, size = len(re.split(r"\s+", item.target)), len(item.target.encode())
    total = math.fsum(sums)
    units = {"word_perplexity": words, "byte_perplexity": size, "bits_per_byte": size}
    return {metric: [total, count] for metric, count in units.items()}


def multiple_choice_values(sums: Sequence[float], choices: Sequence[str], gold: int) -> dict[str, float]:
    """acc and acc_norm of one item. An empty choice can never win by its length."""
    per_character = [
        total / len(choice) if choice else -math.inf for total, choice in zip(sums, choices, strict=True)
    ]
    return {"acc": float(np.argmax(sums) == gold), "acc_norm": float(np.argmax(per_character) == gold)}


def extract(text: str, how: Extraction) -> str:
    """The answer in a generated text: the chosen match, of several groups the first that is not empty."""
    matches = re.findall(how.pattern, text)
    if not matches:
        return NO_ANSWER
    groups = matches[how.index]
    found = [groups] if isinstance(groups, str) else [group for group in groups if group]
    return found[0].strip() if found else NO_ANSWER


def is_same(answer: str, target: str, generation: Generation) -> bool:
    """Exact match without the ignored patterns; where there are some, also without regard to case."""
    for pattern in generation.ignored:
        answer, target = re.sub(pattern, "", answer), re.sub(pattern, "", target)
    return answer.lower() == target.lower() if generation.ignored else answer == target


def aggregate(metric: str, values: Sequence[Value]) -> Scores:
    """A metric over all items, and its standard error where it has one: None for a single item."""
    if metric in WITHOUT_ERROR:
        total, units = (math.fsum(column) for column in zip(*values, strict=True))
        nats = -total / units
        return {metric: nats / math.log(2) if metric == "bits_per_byte" else math.exp(nats)}
    mean = sum(values) / len(values)
    if metric == "perplexity":
        return {metric: math.exp(-mean), f"{metric}_stderr": bootstrap_stderr(values)}
    return {metric: mean, f"{metric}_stderr": mean_stderr(values)}


def sample_deviation(values: Sequence[float]) -> float:
    """√(Σ (x - mean)² / (n - 1))."""
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def mean_stderr(values: Sequence[float]) -> float | None:
    """The standard error of a mean."""
    return sample_deviation(values) / math.sqrt(len(values)) if len(values) > 1 else None


def bootstrap_stderr(values: Sequence[float], iterations: int = BOOTSTRAP_ITERATIONS) -> float | None:
    """The standard error of exp(-mean) by resampling (Efron 1979): how much it varies over draws of n items with replacement.

    The draws are those of lm-evaluation-harness: `random.Random(i).choices` for each i-th thousand, here with NumPy's generator of the same
    sequence.
    """
    n, column = len(values), np.asarray(values)
    if n < 2:
        return None
    perplexities: list[float] = []
    for chunk in range(iterations // 1000):
        generator = np.random.RandomState([chunk])  # a list, seeded as `random.Random(chunk)`
        for _ in range(1000):
            drawn = (generator.random_sample(n) * n).astype(np.int64)
            perplexities.append(math.exp(-column[drawn].mean()))
    return sample_deviation(perplexities)


def aggregate_group(scores: Sequence[Scores]) -> Scores:
    """The scores of a group: means weighted by the items of each task, and the standard error from the pooled variance.

    s² = Σ (n_i - 1) n_i stderr_i² / (Σ n_i - k), of k tasks with n_i items; stderr = √(s² / Σ n_i)
    """
    sizes = [int(score["n"] or 0) for score in scores]
    result: Scores = {}
    for metric in (name for name in scores[0] if f"{name}_stderr" in scores[0]):
        means = [float(score[metric] or 0.0) for score in scores]
        errors = [score[f"{metric}_stderr"] for score in scores]
        result[metric] = sum(mean * n for mean, n in zip(means, sizes, strict=True)) / sum(sizes)
        result[f"{metric}_stderr"] = None
        if all(error is not None for error in errors):
            variance = sum(
                (n - 1) * float(error or 0) ** 2 * n for n, error in zip(sizes, errors, strict=True)
            )
            variance /= sum(sizes) - len(sizes)
            result[f"{metric}_stderr"] = math.sqrt(variance / sum(sizes))
    return result | {"n": sum(sizes)}


def with_groups(names: Sequence[str], scores: dict[str, Scores]) -> dict[str, Scores]:
    """The scores of the groups among the names, then those of the tasks."""
    groups = (name for name in names if name in GROUPS)
    return {name: aggregate_group([scores[member] for member in GROUPS[name]]) for name in groups} | scores


def in_order(scores: Scores) -> Scores:
    """The metrics first, then their standard errors."""
    return dict(sorted(scores.items(), key=lambda score: score[0].endswith("_stderr")))

"""Few-shot prompts: a description, some examples with their answers, the question.

Shots are drawn as lm-evaluation-harness draws them, so that a seed gives the same ones: one `random.Random(seed)` for a task, from which
each item in turn takes a sample. Where the item itself may be among the examples, one more is drawn and the item taken out.

    prompts = list(build_prompts(TASKS["arc_easy"], items, examples, num_fewshot=2, seed=1234))
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from shared_data.benchmarks.items import Item, Prompt
from shared_data.benchmarks.tasks import Task
from shared_data.errors import UserError

DELIMITER = " "  # between a question and its answer
SEPARATOR = "\n\n"  # between two examples
Render = Callable[[list[dict[str, str]]], str]  # a conversation in a model's chat template


def build_prompts(
    task: Task,
    items: Sequence[Item],
    examples: Sequence[Item],
    num_fewshot: int,
    seed: int,
    render: Render | None = None,
) -> Iterator[Prompt]:
    """For each item, how its question becomes a whole context. With `render`, as a conversation in a chat template.

    Raises `UserError` where there are fewer examples than shots.
    """
    generator = random.Random(seed)
    if num_fewshot:
        check_shots(task, examples, num_fewshot)
    for item in items:
        shots: list[tuple[str, str]] = []
        if num_fewshot:
            drawn = draw_shots(task, item, examples, num_fewshot, generator)
            shots = [shot.shot() for shot in drawn]  # type: ignore[union-attr]
        yield _chat(task.description, shots, render) if render else _text(task.description, shots)


def check_shots(task: Task, examples: Sequence[Any], count: int) -> None:
    """Raise `UserError` where there are fewer examples than shots; where the item may be among them, those that equal it do not count."""
    same = max(Counter(map(repr, examples)).values(), default=1) if task.excludes_item else 0
    if count + same > len(examples):
        itself = " and the item itself" if same == 1 else f" and an item that is there {same} times"
        raise UserError(
            f"{task.name} has {len(examples)} examples, too few for {count} shots{itself if same else ''}; "
            "lower --num-fewshot, or give more examples"
        )


def draw_shots(
    task: Task, item: Item, examples: Sequence[Item], count: int, generator: random.Random
) -> list[Item]:
    """`count` examples for one item, by the rule of its task."""
    if not task.excludes_item:
        return list(examples[:count]) if task.takes_first_shots else generator.sample(examples, count)
    others = (example for example in examples if example.doc != item.doc)
    if task.takes_first_shots:
        return list(islice(others, count))
    drawn = [example for example in generator.sample(examples, count + 1) if example.doc != item.doc]
    if len(drawn) < count:  # the item is there more than once
        drawn = generator.sample(list(others), count)
    return drawn[:count]


def _text(description: str, shots: list[tuple[str, str]]) -> Prompt:
    """Everything in a row."""
    before = description + "".join(f"{question}{DELIMITER}{answer}{SEPARATOR}" for question, answer in shots)
    return lambda question: before + question


def _chat(description: str, shots: list[tuple[str, str]], render: Render) -> Prompt:
    """The description as system message, each shot as a question of the user's and a reply."""
    messages = [{"role": "system", "content": description}] if description else []
    for question, answer in shots:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return lambda question: render([*messages, {"role": "user", "content": question}])

"""Exact match: the share of questions that a model answers word for word as expected.

Completions are greedy, so the number does not depend on chance.

    answer_questions(generate, model, tokenizer, list(islice(questions(0, "test"), 100))).accuracy
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from shared_data.files import write_json
from shared_data.inference.chat import Generate, complete_chat
from shared_data.runs import RunFolder
from shared_data.settings import Settings

ANSWER_TOKENS = 32  # more than any right answer has


@dataclass(frozen=True)
class Answers:
    """The share of right answers, over all questions and for each kind of them; and each question with its answer."""

    accuracy: float
    by_kind: dict[str, float]
    records: list[dict[str, Any]]


def answer_questions(
    generate: Generate, model: Any, tokenizer: Any, tasks: Sequence[Any], batch_size: int = 50
) -> Answers:
    """Put each task (`prompt`, `reply`, `kind`) to the model as the first turn of a conversation."""
    completions: list[str] = []
    for start in range(0, len(tasks), batch_size):
        batch = [[{"role": "user", "content": task.prompt}] for task in tasks[start : start + batch_size]]
        completions += complete_chat(generate, model, tokenizer, batch, max_new_tokens=ANSWER_TOKENS)
    right: dict[str, list[bool]] = defaultdict(list)
    records = []
    for task, text in zip(tasks, completions, strict=True):
        right[task.kind].append(text.strip() == task.reply)
        records.append({"kind": task.kind, "prompt": task.prompt, "expected": task.reply, "reply": text})
    matches = [match for of_kind in right.values() for match in of_kind]
    by_kind = {kind: sum(of_kind) / len(of_kind) for kind, of_kind in sorted(right.items())}
    return Answers(sum(matches) / max(1, len(matches)), by_kind, records)


def evaluate_answers(
    settings: Settings, run: RunFolder, generate: Generate, before: Any, after: Any, tokenizer: Any
) -> dict[str, float]:
    """Accuracy on the story world's held-out questions before and after tuning on it; all answers are kept in answers.json."""
    file = run.stage("sft") / "answers.json"
    file.unlink(missing_ok=True)  # of an earlier run, on other data
    if settings.sft.source != "story_world":
        return {}
    from shared_data.story_world.tasks import questions

    tasks = list(islice(questions(settings.sft.seed, "test"), settings.sft.eval_questions))
    first, last = (answer_questions(generate, model, tokenizer, tasks) for model in (before, after))
    write_json(file, {"before": first.records, "after": last.records})
    return {
        "qa_accuracy_before": first.accuracy,
        "qa_accuracy": last.accuracy,
        "unanswerable_accuracy": last.by_kind.get("unanswerable", 0.0),
    }

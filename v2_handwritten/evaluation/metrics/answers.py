"""Exact match: the share of questions to which a model replies word for word as it should.

Replies are greedy, so the number does not depend on luck. Every level has the same.

    answer_questions(model, tokenizer, list(islice(questions(0, "test"), 100))).accuracy
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from v2_handwritten.data_pipeline.tokenizer.tokenizer import Tokenizer
from v2_handwritten.inference.chat import reply
from v2_handwritten.models.transformer import Transformer

REPLY_TOKENS = 32  # more than any right answer has


@dataclass(frozen=True)
class Answers:
    """The share of right replies, over all questions and for each kind of them; and what was replied to each."""

    accuracy: float
    by_kind: dict[str, float]
    records: list[dict[str, Any]]


def answer_questions(
    model: Transformer, tokenizer: Tokenizer, tasks: Sequence[Any], batch_size: int = 50
) -> Answers:
    """Ask each task (`prompt`, `reply`, `kind`) by itself, as the first turn of a conversation."""
    replies: list[str] = []
    for start in range(0, len(tasks), batch_size):
        asked = [[{"role": "user", "content": task.prompt}] for task in tasks[start : start + batch_size]]
        replies += reply(model, tokenizer, asked, max_new_tokens=REPLY_TOKENS)
    right: dict[str, list[bool]] = defaultdict(list)
    records = []
    for task, text in zip(tasks, replies, strict=True):
        right[task.kind].append(text.strip() == task.reply)
        records.append({"kind": task.kind, "prompt": task.prompt, "expected": task.reply, "reply": text})
    matches = [match for of_kind in right.values() for match in of_kind]
    by_kind = {kind: sum(of_kind) / len(of_kind) for kind, of_kind in sorted(right.items())}
    return Answers(sum(matches) / max(1, len(matches)), by_kind, records)

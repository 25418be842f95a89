"""Does a pattern of attention keep the answer? For questions about stories, which of their answers the last token of the prompt can see.

A layer that does not see the answer cannot copy it in one step; it may still receive it from tokens between, over several layers. The
measure takes any row of booleans, so it serves fixed patterns (`pattern_rows`) and learned selection alike: hand in a function from
the ids of a prompt to what the last of them sees, by layer.

Theory: shared_data/story_world/segments.md.

    uv run v2 look --patterns
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from shared_data.attention.patterns import AttentionPattern, tiles_of_text, visible_pairs
from shared_data.errors import UserError
from shared_data.inference.prompts import encode_chat
from shared_data.story_world.evidence import answer_spans
from shared_data.story_world.records import Task

# From the T ids of a prompt to what its last token sees of them, under a name for each layer or pattern.
VisibleRows = Callable[[Sequence[int]], Mapping[str, Bool[np.ndarray, " T"]]]


class AnswerPrompt(NamedTuple):
    """The ids of a prompt, and the places of the tokens of each span that alone gives the answer."""

    ids: list[int]
    spans: list[list[int]]


class Kept(NamedTuple):
    """Shares of questions: with one span wholly visible, and with any of its tokens visible; and of the keys that are visible."""

    whole: float
    part: float
    keys: float


def answer_prompts(tokenizer: Any, tasks: Iterable[Task]) -> list[AnswerPrompt]:
    """The prompts of all questions that their stories answer, as a tuned model reads them.

    The tokenizer has `encode` and `byte_lengths`. Raises `UserError` where its tokens are not exactly the bytes of the text.
    """
    prompts = []
    for task in tasks:
        if spans := answer_spans(task):
            messages = [{"role": "user", "content": task.prompt}]
            text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            ids = encode_chat(tokenizer, messages)
            token_of_byte = np.repeat(np.arange(len(ids)), tokenizer.byte_lengths[ids])
            if len(token_of_byte) != len(text.encode()):
                raise UserError(
                    f"{len(token_of_byte)} bytes of tokens stand for a prompt of {len(text.encode())}; use a byte-level tokenizer that changes no text"
                )
            offset = text.index(task.prompt)
            bytes_before = [[len(text[: offset + place].encode()) for place in span] for span in spans]
            tokens = [np.unique(token_of_byte[start:end]).tolist() for start, end in bytes_before]
            prompts.append(AnswerPrompt(ids, tokens))
    return prompts


def kept_answers(visible_rows: VisibleRows, prompts: Sequence[AnswerPrompt]) -> dict[str, Kept]:
    """How often the last token of a prompt sees its answer, for each name that `visible_rows` returns."""
    assert prompts, "there is no question with an answer"
    seen: dict[str, list[Kept]] = {}
    for prompt in prompts:
        for name, row in visible_rows(prompt.ids).items():
            whole = any(row[span].all() for span in prompt.spans)
            part = any(row[span].any() for span in prompt.spans)
            seen.setdefault(name, []).append(Kept(float(whole), float(part), float(row.mean())))
    return {name: Kept(*np.mean(of_name, axis=0).tolist()) for name, of_name in seen.items()}


def pattern_rows(patterns: Mapping[str, AttentionPattern]) -> VisibleRows:
    """What the last token sees under each of some patterns."""
    return lambda ids: {name: visible_row(pattern, len(ids)) for name, pattern in patterns.items()}


def visible_row(pattern: AttentionPattern, T: int) -> Bool[np.ndarray, " T"]:
    """Which of T tokens the last one sees."""
    row = np.zeros(T, dtype=bool)
    for tile in tiles_of_text(pattern, 0, T, past=T - 1):
        row[tile.keys] |= True if tile.hidden is None else ~tile.hidden[0]
    return row


def share_of_pairs(pattern: AttentionPattern, T: int) -> float:
    """The share of the causal pairs of T tokens that a pattern keeps: what it costs beside full attention."""
    return visible_pairs(pattern, T) / (T * (T + 1) // 2)


def of_equal_cost(kind: str, share: float, T: int) -> AttentionPattern:
    """The pattern of a kind that keeps about this share of the pairs of T tokens.

    Of strided patterns with few and with many strides, the one with the stride above √T, as in Child et al. 2019.
    """
    smallest = int(np.ceil(np.sqrt(T))) if kind == "strided_attention" else 1
    patterns = [AttentionPattern(kind, size) for size in range(smallest, T + 1)]
    return min(patterns, key=lambda pattern: abs(share_of_pairs(pattern, T) - share))

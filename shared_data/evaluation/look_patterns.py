"""What `look --patterns` prints: which patterns of attention let the last token of a question see its answer, and at what cost.

print_patterns(config, tokenizer)
"""

from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np

from shared_data.attention.patterns import KINDS, AttentionPattern
from shared_data.evaluation.kept_answers import (
    Kept,
    VisibleRows,
    answer_prompts,
    kept_answers,
    of_equal_cost,
    pattern_rows,
    share_of_pairs,
)
from shared_data.model_files.config import ModelConfig
from shared_data.story_world.questions import questions

QUESTIONS = 250  # held-out ones; four of five have an answer in their story
_SHARES = (0.5, 0.25, 0.125)  # of the pairs, where all layers of the model are full
_LEARNED = "indexed_attention"  # which keys it sees depends on the text


def print_patterns(
    config: ModelConfig, tokenizer: Any, selected: VisibleRows | None = None, count: int = QUESTIONS
) -> None:
    """Print a table: the patterns of the model's layers, then a window, chunks and strides that keep as many pairs.

    selected: what the indexers of the layers that have one select for the last token; without it they are left out.
    Raises `UserError` where the tokenizer is not byte-level.
    """
    from rich.console import Console
    from rich.table import Table

    prompts = answer_prompts(tokenizer, islice(questions(0, "test"), count))
    T = round(np.mean([len(prompt.ids) for prompt in prompts]))
    own, learned = own_patterns(config), {} if selected is None else selected(prompts[0].ids)
    costs = {name: share_of_pairs(pattern, T) for name, pattern in own.items()}
    costs |= dict.fromkeys(
        learned, share_of_pairs(AttentionPattern("sliding_attention", config.index_topk or T), T)
    )
    families = equal_families([share for share in costs.values() if share < 1], T)
    others = {name: pattern for family in families.values() for name, pattern in family.items()}
    costs |= {name: share_of_pairs(pattern, T) for name, pattern in others.items()}
    kept = kept_answers(pattern_rows(own | others), prompts)
    if selected is not None and learned:
        kept |= kept_answers(selected, prompts)
    print(
        f"{len(prompts)} held-out questions that their story answers; a prompt has {T} tokens on average.\n"
        "How often the last token of the prompt sees the answer directly, in one layer:"
    )
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for title in ("attention", "pairs", "keys seen", "all of the answer", "any of it"):
        table.add_column(title, justify="left" if title == "attention" else "right", no_wrap=True)
    for title, names in {"the model's layers": [*own, *learned], **families}.items():
        table.add_row(title, style="bold")
        for name in names:
            table.add_row(f"  {name}", *_cells(costs[name], kept[name]))
    Console(highlight=False, width=110).print(table)
    if _LEARNED in config.layer_types and not learned:
        print(f"The keys of {_LEARNED} depend on what the model has learned; name a model with --model.")


def own_patterns(config: ModelConfig) -> dict[str, AttentionPattern]:
    """The patterns of a model's layers by name, equal ones once: `sliding_attention 64, layers 0, 2`."""
    layers: dict[AttentionPattern, list[int]] = {}
    for layer, kind in enumerate(config.layer_types):
        if kind != _LEARNED:
            layers.setdefault(config.pattern(layer), []).append(layer)
    return {
        f"{_name(pattern)}, layer{'s' if len(of) > 1 else ''} {', '.join(map(str, of))}": pattern
        for pattern, of in layers.items()
    }


def equal_families(costs: Iterable[float], T: int) -> dict[str, dict[str, AttentionPattern]]:
    """For each share of the pairs of T tokens, a pattern of each sparse kind that keeps as many; for no share, for a half and less."""
    kinds = [kind for kind in KINDS if kind != "full_attention"]
    return {
        f"about {share:.0%} of the pairs": {
            _name(pattern): pattern for pattern in (of_equal_cost(kind, share, T) for kind in kinds)
        }
        for share in sorted(set(costs) or _SHARES, reverse=True)
    }


def _name(pattern: AttentionPattern) -> str:
    """`sliding_attention 64 + 4 first tokens`."""
    sinks = f" + {pattern.num_sink_tokens} first tokens" if pattern.num_sink_tokens else ""
    return pattern.kind + (f" {pattern.size}" if pattern.size else "") + sinks


def _cells(pairs: float, kept: Kept) -> list[str]:
    return [f"{share:.1%}" for share in (pairs, kept.keys, kept.whole, kept.part)]

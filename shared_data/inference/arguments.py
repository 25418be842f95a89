"""The arguments of `generate`, read and checked: the prompts, which ids end a sequence, how long it may become, how it is sampled.

uv run python -c "from shared_data.inference.arguments import new_token_limits; print(new_token_limits([[5, 6]], 100, positions=64))"
"""

from collections.abc import Callable, Iterable, Sequence
from numbers import Integral
from operator import index
from typing import Any

import numpy as np
from jaxtyping import Float64

from shared_data.errors import UserError
from shared_data.seeds import check_seed

# Logits stay finite in float32 when they are divided by it.
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 1e-30, 1e30


def end_ids(eos_token_id: int | Sequence[int] | None) -> list[int]:
    """The ids that end a sequence, from a configuration's or a caller's `eos_token_id`: one, several or none."""
    if eos_token_id is None:
        return []
    ids = [eos_token_id] if isinstance(eos_token_id, Integral) else eos_token_id
    return _integers(ids, "eos_token_id", "pass an id, a list of ids, or [] to stop nowhere")


def prompt_ids(prompts: Iterable[Iterable[int]], stop_ids: Sequence[int], vocab_size: int) -> list[list[int]]:
    """The ids of each prompt, a list or an array; the first of `stop_ids` stands in for an empty one.

    Raises `UserError` for prompts that are no lists of ids of the vocabulary.
    """
    remedy = "pass a list of ids for each prompt, as in [tokenizer.encode(text)]"
    if isinstance(prompts, str) or not isinstance(prompts, Iterable):
        raise UserError(f"the prompts are {prompts!r:.60}, not a list; {remedy}")
    rows = [_integers(prompt, "a prompt", remedy) or list(stop_ids[:1]) for prompt in prompts]
    for row in rows:
        if row and not 0 <= min(row) <= max(row) < vocab_size:
            wrong = min(row) if min(row) < 0 else max(row)
            raise UserError(
                f"a prompt has the id {wrong}, and the model's ids are 0 to {vocab_size - 1}; use the tokenizer that belongs to the model"
            )
    return rows


def new_token_limits(prompts: Sequence[Sequence[int]], max_new_tokens: int, positions: int) -> list[int]:
    """How many tokens may follow each prompt; raises `UserError` where that is none."""
    if not isinstance(max_new_tokens, Integral) or max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {max_new_tokens!r:.60}; choose an integer of at least 1")
    if not prompts:
        raise UserError("there is no prompt; pass one, or an empty text to begin at the beginning")
    for prompt in prompts:
        if not prompt:
            raise UserError("a prompt is empty, and there is no eos_token_id to begin with; pass a token")
        if len(prompt) >= positions:
            raise UserError(
                f"a prompt of {len(prompt)} tokens leaves no room in the model's {positions} positions; shorten it"
            )
    return [min(max_new_tokens, positions - len(prompt)) for prompt in prompts]


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise `UserError` for a parameter outside of its range."""
    if not _is_between(temperature, LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE):
        raise UserError(
            f"temperature {temperature!r:.60} is not from {LOWEST_TEMPERATURE:g} to {HIGHEST_TEMPERATURE:g}; choose one, "
            "or decode greedily without filters"
        )
    if top_k is not None and not (isinstance(top_k, Integral) and top_k >= 1):
        raise UserError(f"top_k {top_k!r:.60} is no integer above 0; leave it out to keep every token")
    if top_p is not None and not (_is_between(top_p, 0, 1) and top_p > 0):
        raise UserError(f"top_p {top_p!r:.60} is not in (0, 1]; 0.95 is common, and 1 keeps every token")


def check_seeds(seed: int | Sequence[int], rows: int) -> None:
    """Raise `UserError` for what seeds no generator, and for a list that has not one seed for each prompt."""
    if not isinstance(seed, Sequence):
        check_seed(seed)
        return
    for each in seed:
        check_seed(each)
    if len(seed) != rows:
        raise UserError(f"there are {len(seed)} seeds for {rows} prompts; pass one for each, or one for all")


def uniform_numbers(seed: int | Sequence[int], rows: int, steps: int) -> Float64[np.ndarray, "rows steps"]:
    """A uniform number in [0, 1) for each row and step, each row's from a stream of its own.

    One seed for all: the stream of row r is made of (seed, r). A seed for each row: of (its seed, 0), so that a prompt draws what it
    would draw alone.
    """
    streams = [(each, 0) for each in seed] if isinstance(seed, Sequence) else [(seed, r) for r in range(rows)]
    return np.stack([np.random.default_rng(stream).random(steps) for stream in streams])


def pass_on(new_ids: Sequence[Sequence[int]], on_token: Callable[[int, int], None] | None) -> None:
    """Call `on_token(row, id)` for ids that were not known one by one: a beam search decides at its end."""
    if on_token is not None:
        for row, ids in enumerate(new_ids):
            for id in ids:
                on_token(row, id)


def _integers(values: Any, name: str, remedy: str) -> list[int]:
    """A list or an array of integers as a list."""
    try:
        values = list(values.tolist() if hasattr(values, "tolist") else values)
        return values if set(map(type, values)) <= {int} else list(map(index, values))
    except TypeError as error:
        raise UserError(f"{name} is {values!r:.60}, not integers; {remedy}") from error


def _is_between(value: Any, low: float, high: float) -> bool:
    try:
        return bool(low <= value <= high)
    except TypeError:
        return False

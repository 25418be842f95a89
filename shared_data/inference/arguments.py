"""The arguments of `generate`, read and checked: which ids end a sequence, how long it may become, how it is sampled.

python -c "from shared_data.inference.arguments import new_token_limits; print(new_token_limits([[5, 6]], 100, positions=64))"
"""

from collections.abc import Sequence

from shared_data.errors import UserError


def end_ids(eos_token_id: int | Sequence[int] | None) -> list[int]:
    """The ids that end a sequence, from a configuration's or a caller's `eos_token_id`: one, several or none."""
    return [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id or [])


def new_token_limits(prompts: Sequence[Sequence[int]], max_new_tokens: int, positions: int) -> list[int]:
    """How many tokens may follow each prompt; raises `UserError` where that is none."""
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
    if not temperature > 0:
        raise UserError(
            f"temperature {temperature} is not above 0; raise it, or decode greedily without filters"
        )
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k {top_k} is below 1; raise it, or leave it out to keep every token")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p {top_p} is not in (0, 1]; 0.95 is common, and 1 keeps every token")

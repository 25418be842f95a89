"""Rewards: one number a completion, or None where the reward does not apply.

uv run python -c "from shared_data.alignment.reward_values import reward_metrics; print(reward_metrics([1.0, None, 0.5]))"
"""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from shared_data.errors import UserError

Rewards = Sequence[float | None]
LARGEST = 1e15  # float32 ends at 3e38; of such numbers even the squares of a batch, for a standard deviation, add up to less
_SHOWN = 60  # characters of a text in an error message


def check_rewards(rewards: Sequence[Any], count: int) -> list[float]:
    """The rewards of PPO as numbers, the last check before they move weights. Raises `UserError` unless there are `count` usable ones."""
    for index, reward in enumerate(rewards):
        if reward is None:
            raise UserError(
                f"the reward gave None for completion {index + 1}; PPO needs a number for every completion (GRPO leaves one without out)"
            )
    check_count_and_numbers(rewards, count, "the reward", lambda index: f" for completion {index + 1}")
    return [float(reward) for reward in rewards]


def as_floats(rewards: Rewards) -> list[float]:
    """For arrays: NaN where a reward does not apply."""
    return [math.nan if reward is None else reward for reward in rewards]


def reward_metrics(rewards: Rewards) -> dict[str, float]:
    """Mean and standard deviation (n - 1 in the denominator) of the rewards that apply; nothing where none does."""
    numbers = [reward for reward in rewards if reward is not None]
    metrics = {"reward": statistics.fmean(numbers)} if numbers else {}
    return metrics | ({"reward_std": statistics.stdev(numbers)} if len(numbers) > 1 else {})


def check_count_and_numbers(
    rewards: Sequence[Any], count: int, name: str, record: Callable[[int], str]
) -> None:
    """Raise `UserError` unless there are `count` usable rewards.  record: the words that name a completion by its index."""
    if len(rewards) != count:
        raise UserError(
            f"{name} gave {len(rewards)} rewards for {count} completions; return one number for each completion, in order"
        )
    for index, reward in enumerate(rewards):
        if reward is not None and not is_usable_number(reward):
            raise UserError(
                f"{name} gave {shown(reward)}{record(index)}; return a finite number for every completion, "
                f"of at most {LARGEST:.0e} in size, or None where the reward does not apply"
            )


def is_usable_number(value: Any) -> bool:
    """Python's, NumPy's or torch's number, neither NaN nor beyond what float32 can compute with."""
    try:
        return not isinstance(value, str | bytes | bytearray) and abs(float(value)) <= LARGEST
    except (
        Exception
    ):  # of whatever a user's function returned: no number, several in one tensor, an integer too large
        return False


def shown(value: Any) -> str:
    try:
        return _shorten(repr(value))
    except Exception:  # Python writes no integer of more than 4,300 digits
        return f"a {type(value).__name__}"


def _shorten(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"

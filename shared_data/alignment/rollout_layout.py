"""How sampled completions are arranged for learning: prompts padded on the left, completions on the right, as in TRL.

input_ids, attention_mask, completion_mask, prompt_length = lay_out([[5, 6]], [[7, 8]], max_completion_length=4)
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from shared_data.errors import UserError


def lay_out(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], max_completion_length: int
) -> tuple[Int64[np.ndarray, "B S"], Int64[np.ndarray, "B S"], Int64[np.ndarray, "B S"], int]:
    """Input ids, attention mask, completion mask, and the column P where completions begin."""
    P = max(map(len, prompts))
    T = min(max(map(len, completions)) + 1, max_completion_length)
    input_ids, attention_mask, completion_mask = np.zeros((3, len(prompts), P + T), np.int64)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        begin, end = P - len(prompt), P + len(completion)
        input_ids[row, begin:end] = [*prompt, *completion]
        attention_mask[row, begin:end] = 1
        completion_mask[row, P:end] = 1
    return input_ids, attention_mask, completion_mask, P


def check_rollout(
    prompts: Sequence[Sequence[int]], max_completion_length: int, temperature: float, positions: int
) -> None:
    """Raise `UserError` where nothing can be sampled, or nothing learned from it."""
    if temperature <= 0:
        raise UserError(f"sampling needs a temperature above 0, not {temperature}; raise it")
    for number, prompt in enumerate(prompts, start=1):
        if len(prompt) + max_completion_length > positions:
            raise UserError(
                f"prompt {number} of {len(prompt)} tokens and a completion of up to {max_completion_length} exceed the model's "
                f"{positions} positions; shorten the prompt or lower max_completion_length"
            )

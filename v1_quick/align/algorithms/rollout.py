"""Rollouts: replies sampled by transformers' `generate`, laid out by TRL's `pad`, prompts to the left, replies to the right.

`GRPOTrainer` and `PPOTrainer` do this by themselves; it stands here to be compared. The library draws from torch's
generator, so the tokens are others than those of levels 2 and 3. Theory: v2_handwritten/align/algorithms/rollout.md.

    rollout = collect(model, prompts, max_new_tokens=64, temperature=0.7, seed=step, eos_token_id=end)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shared_data.errors import UserError
from v1_quick.inference.generate import generate
from v1_quick.models.transformer import Transformer


@dataclass(frozen=True)
class Rollout:
    """Prompts and replies [B, P + T], masks that are 1 on both and on replies, which replies ended by themselves, and P."""

    input_ids: Tensor
    attention_mask: Tensor
    reply_mask: Tensor
    finished: Tensor
    prompt_length: int

    def replies(self) -> list[list[int]]:
        """The ids of each reply."""
        return [ids[mask].tolist() for ids, mask in zip(self.input_ids, self.reply_mask.bool(), strict=True)]


def collect(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
    eos_token_id: int | Sequence[int] | None = None,
    replies_per_prompt: int = 1,
    pad_token_id: int = 0,
) -> Rollout:
    """Sample replies, those to one prompt next to each other; see level 2 for the arguments.

    Raises `UserError` for a temperature of 0, and where prompts and replies may exceed the model's positions.
    """
    from trl.trainer.utils import pad  # takes seconds to import

    stop_ids = [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id or [])
    asked = [list(prompt) or stop_ids[:1] for prompt in prompts for _ in range(replies_per_prompt)]
    _check(asked, max_new_tokens, temperature, model.config.max_position_embeddings)
    replies = generate(
        model, asked, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, eos_token_id=stop_ids
    )
    device = model.library.device
    width = min(max(map(len, replies)) + 1, max_new_tokens)  # one more than the longest; see level 2
    prompt_ids, reply_ids = (
        [torch.tensor(row, device=device) for row in rows]
        for rows in (asked, [*replies, [pad_token_id] * width])
    )
    left = pad(prompt_ids, pad_token_id, "left"), pad([torch.ones_like(x) for x in prompt_ids], 0, "left")
    right = pad(reply_ids, pad_token_id), pad([torch.ones_like(x) for x in reply_ids])
    right_ids, right_mask = (x[:-1] for x in right)  # without the row that set the width
    return Rollout(
        torch.cat([left[0], right_ids], 1),
        torch.cat([left[1], right_mask], 1),
        torch.cat([torch.zeros_like(left[1]), right_mask], 1),
        torch.tensor([reply[-1] in stop_ids for reply in replies], device=device),
        prompt_length=left[0].shape[1],
    )


def _check(prompts: list[list[int]], max_new_tokens: int, temperature: float, positions: int) -> None:
    """Raises `UserError` where nothing can be sampled, or nothing learned from it."""
    if temperature <= 0:
        raise UserError(
            f"rollouts need a temperature above 0, not {temperature}: a policy that draws no lots has no probabilities to improve"
        )
    for index, prompt in enumerate(prompts):
        if len(prompt) + max_new_tokens > positions:
            raise UserError(
                f"prompt {index + 1} of {len(prompt)} tokens and a reply of up to {max_new_tokens} exceed the model's "
                f"{positions} positions; shorten the prompt or lower max_new_tokens"
            )

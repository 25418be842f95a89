"""Rollouts: replies sampled from the policy that is being trained, laid out for learning.

What reinforcement learning has instead of a data set. Prompts end where replies begin, so prompts are padded on the left
and replies on the right, as in TRL:

    · · p p p │ r r r ·        columns: P of prompts, T of replies
    p p p p p │ r r r r

Nothing is filtered: with top-k or top-p the tokens would come from another distribution than the one whose log-probabilities
the loss is made of. Theory:
v2_handwritten/align/algorithms/rollout.md.

Level 1: transformers' `generate` and TRL's `pad`. Level 2: the same over torch, and the same tokens from the same seed.

    rollout = collect(model, prompts, max_new_tokens=64, temperature=0.7, seed=step, eos_token_id=end)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from shared_data.errors import UserError
from v3_numpy_deep.autograd import Array, Tensor
from v3_numpy_deep.inference.generate import generate
from v3_numpy_deep.models.transformer import Transformer


@dataclass(frozen=True)
class Rollout:
    """Prompts and replies of B rows and S = P + T columns.

    attention_mask  1 on prompts and replies, 0 on padding
    reply_mask      1 on replies, the token that ends one included
    finished        whether a reply ended by itself; the others were cut off
    prompt_length   P, the column where the replies begin
    """

    input_ids: Int[Array, "B S"]
    attention_mask: Int[Array, "B S"]
    reply_mask: Int[Array, "B S"]
    finished: Bool[Array, " B"]
    prompt_length: int

    def of_replies(self, x: Float[Tensor, "B before"]) -> Float[Tensor, "B T"]:
        """The T columns about the replies' tokens, of numbers that stand one place before their token [B, S - 1].

        Log-probabilities are made that way; of S values leave out the last: `of_replies(values[:, :-1])`.
        """
        return x[:, self.prompt_length - 1 :]

    def replies(self) -> list[list[int]]:
        """The ids of each reply."""
        return [
            ids[mask].tolist() for ids, mask in zip(self.input_ids, self.reply_mask.astype(bool), strict=True)
        ]

    def rows(self, rows: Int[Array, " N"]) -> "Rollout":
        """Some of the rows: a minibatch."""
        return replace(
            self,
            input_ids=self.input_ids[rows],
            attention_mask=self.attention_mask[rows],
            reply_mask=self.reply_mask[rows],
            finished=self.finished[rows],
        )


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
    """Sample replies, those to one prompt next to each other, without dropout and without gradients.

    T is one column more than the longest reply, up to `max_new_tokens`: a reply that ends before it is cut off then always
    has a column after it, and what PPO makes of it (`ppo.value_mask`) does not depend on the others in the batch.
    Raises `UserError` for a temperature of 0, and where prompts and replies may exceed the model's positions.
    """
    stop_ids = [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id or [])
    asked = [list(prompt) or stop_ids[:1] for prompt in prompts for _ in range(replies_per_prompt)]
    _check(asked, max_new_tokens, temperature, model.config.max_position_embeddings)
    replies = generate(
        model, asked, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, eos_token_id=stop_ids
    )
    P, T = max(map(len, asked)), min(max(map(len, replies)) + 1, max_new_tokens)
    ids = np.full((len(asked), P + T), pad_token_id)
    attention_mask = np.zeros_like(ids)
    reply_mask = np.zeros_like(ids)
    for row, (prompt, reply) in enumerate(zip(asked, replies, strict=True)):
        begin, end = P - len(prompt), P + len(reply)
        ids[row, begin:end] = prompt + reply
        attention_mask[row, begin:end] = 1
        reply_mask[row, P:end] = 1
    finished = np.array([reply[-1] in stop_ids for reply in replies])
    return Rollout(ids, attention_mask, reply_mask, finished, prompt_length=P)


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

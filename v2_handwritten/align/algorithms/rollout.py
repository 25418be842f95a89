"""Rollouts: completions sampled from the policy that is being trained, arranged for learning.

What reinforcement learning has instead of a data set. Prompts end where completions begin, so prompts are padded on the left
and completions on the right, as in TRL:

    · · p p p │ r r r ·        columns: P of prompts, T of completions
    p p p p p │ r r r r

Nothing is filtered: with top-k or top-p the tokens would come from another distribution than the one whose log-probabilities
the loss is made of. Theory: rollout.md.

Level 1: transformers' `generate` and TRL's `pad`. Level 3: the same over NumPy, and the same tokens from the same seed.

    rollout = collect(model, prompts, max_completion_length=64, temperature=0.7, seed=step)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shared_data.alignment.rollout_layout import check_rollout, lay_out
from v2_handwritten.inference.generate import generate
from v2_handwritten.models.transformer import Transformer


@dataclass(frozen=True)
class Rollout:
    """Prompts and completions of B rows and S = P + T columns.

    attention_mask  1 on prompts and completions, 0 on padding
    completion_mask      1 on completions, the token that ends one included
    finished        whether a completion ended by itself; the others were cut off
    prompt_length   P, the column where the completions begin
    """

    input_ids: Int[Tensor, "B S"]
    attention_mask: Int[Tensor, "B S"]
    completion_mask: Int[Tensor, "B S"]
    finished: Bool[Tensor, " B"]
    prompt_length: int

    @property
    def mask(self) -> Int[Tensor, "B T"]:
        """1 on the completions' tokens, in their T columns."""
        return self.completion_mask[:, self.prompt_length :]

    def of_completions(self, x: Float[Tensor, "B before"]) -> Float[Tensor, "B T"]:
        """The T columns about the completions' tokens, of numbers that stand one place before their token [B, S - 1].

        Log-probabilities are made that way; of S values leave out the last: `of_completions(values[:, :-1])`.
        """
        return x[:, self.prompt_length - 1 :]

    def completions(self) -> list[list[int]]:
        """The ids of each completion."""
        return [
            ids[mask].tolist() for ids, mask in zip(self.input_ids, self.completion_mask.bool(), strict=True)
        ]

    def rows(self, rows: Int[Tensor, " N"]) -> "Rollout":
        """Some of the rows: a minibatch."""
        return replace(
            self,
            input_ids=self.input_ids[rows],
            attention_mask=self.attention_mask[rows],
            completion_mask=self.completion_mask[rows],
            finished=self.finished[rows],
        )


def collect(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    max_completion_length: int,
    temperature: float = 1.0,
    seed: int = 0,
    num_generations: int = 1,
) -> Rollout:
    """Sample `num_generations` completions of each prompt, next to each other, without dropout and without gradients.

    T is one column more than the longest completion, up to `max_completion_length`: a completion that ends before it is cut off then
    always has a column after it, and what PPO makes of it (`ppo.value_mask`) does not depend on the others in the batch.
    Raises `UserError` for a temperature of 0, and where a prompt and its completion may exceed the model's positions.
    """
    end = model.config.eos_token_id
    stop_ids = [end] if isinstance(end, int) else list(end or [])
    rows = [list(prompt) or stop_ids[:1] for prompt in prompts for _ in range(num_generations)]
    check_rollout(rows, max_completion_length, temperature, model.config.max_position_embeddings)
    completions = generate(
        model,
        rows,
        max_new_tokens=max_completion_length,
        temperature=temperature,
        seed=seed,
        eos_token_id=stop_ids,
    )
    input_ids, attention_mask, completion_mask, P = lay_out(rows, completions, max_completion_length)
    finished = np.array([completion[-1] in stop_ids for completion in completions])
    device = model.lm_head.weight.device
    return Rollout(
        torch.from_numpy(input_ids).to(device),
        torch.from_numpy(attention_mask).to(device),
        torch.from_numpy(completion_mask).to(device),
        torch.from_numpy(finished).to(device),
        prompt_length=P,
    )

"""What a reply is worth: reward models as functions of texts, and the exam of a policy.

trl's trainers sample, decode and score by themselves; what they are judged by before and after is the same at all levels.

    metrics, replies = examine_policy(model, None, tokenizer, prompts, reward, max_new_tokens=64)
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from shared_data.reward_functions import RewardFunction, score_replies

from v1_quick.align.algorithms.log_probabilities import reply_log_probabilities
from v1_quick.align.algorithms.rollout import collect
from v1_quick.data_pipeline.tokenizer.tokenizer import Tokenizer
from v1_quick.inference.chat import encode_chat, stop_ids
from v1_quick.models.reward_model import RewardModel
from v1_quick.models.transformer import Transformer

Score = Callable[
    [list[list[int]]], Sequence[float]
]  # the ids of all replies, in order -> a finite number each


def encode_prompts(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    """Each prompt as the first turn of a conversation, up to where the reply begins."""
    return [encode_chat(tokenizer, [{"role": "user", "content": prompt}]) for prompt in prompts]


def decode_replies(tokenizer: Tokenizer, replies: Sequence[Sequence[int]]) -> list[str]:
    """The texts of replies, without the token that ended them."""
    ends = set(stop_ids(tokenizer))
    return [tokenizer.decode([id for id in reply if id not in ends]) for reply in replies]


def model_score(
    reward_model: RewardModel, prompts: Sequence[Sequence[int]], replies_per_prompt: int = 1
) -> Score:
    """Scores by a reward model, read at the last token of prompt and reply. Padding is on the right: nothing sees it."""
    asked = [list(prompt) for prompt in prompts for _ in range(replies_per_prompt)]

    @torch.no_grad()
    def score(replies: list[list[int]]) -> list[float]:
        reward_model.eval()
        rows = [prompt + reply for prompt, reply in zip(asked, replies, strict=True)]
        width, device = max(map(len, rows)), next(reward_model.parameters()).device
        input_ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
        return reward_model(input_ids, mask).tolist()

    return score


def model_reward(reward_model: RewardModel, tokenizer: Tokenizer) -> RewardFunction:
    """A reward model as a function of texts, for an exam on prompts whose truth nobody knows."""

    def reward(prompts: list[str], replies: list[str]) -> list[float]:
        ids = [
            [*tokenizer.encode(reply, add_special_tokens=False), *stop_ids(tokenizer)[:1]]
            for reply in replies
        ]
        return list(model_score(reward_model, encode_prompts(tokenizer, prompts))(ids))

    return reward


@torch.no_grad()
def examine_policy(
    model: Transformer,
    reference: Transformer | None,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    reward: RewardFunction,
    max_new_tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Mean `reward` of one sampled reply to each prompt, the divergence `kl` from the reference in nats a reply, and the replies.

    Before and after training, on prompts that training never saw, with the same seed: the dice are the same, the policy is not.
    """
    was_training = model.training
    model.eval()
    records: list[dict[str, Any]] = []
    divergence, finished = 0.0, 0.0
    for start in range(0, len(prompts), batch_size):
        asked = list(prompts[start : start + batch_size])
        ids = encode_prompts(tokenizer, asked)
        rollout = collect(model, ids, max_new_tokens, temperature, seed + start, stop_ids(tokenizer))
        texts = decode_replies(tokenizer, rollout.replies())
        rewards = score_replies(reward, asked, texts)
        records += [
            {"prompt": prompt, "reply": text, "reward": value}
            for prompt, text, value in zip(asked, texts, rewards, strict=True)
        ]
        finished += rollout.finished.sum().item()
        if reference is not None:
            given = (rollout.input_ids, rollout.reply_mask, rollout.attention_mask, temperature)
            new, kept = (reply_log_probabilities(policy, *given) for policy in (model, reference))
            divergence += (new - kept).sum().item()
    model.train(was_training)
    metrics = {
        "reward": sum(record["reward"] for record in records) / len(records),
        "finished": finished / len(records),
    }
    return metrics | ({} if reference is None else {"kl": divergence / len(records)}), records

"""The stage `grpo`: sample groups of replies, score them, learn from what was better than the rest (Shao et al. 2024, algorithm 1).

`grpo_step` is one update. The functions stand in algorithms/grpo.py and algorithms/rollout.py; here they are called in
order. Scores come from a function of the replies: a verifier, the story world's reward, or a user's own
(`shared_data.reward_functions`).

Level 1: `trl.GRPOTrainer`. Level 2: the same over torch; from the same weights it samples the same replies and ends
with the same weights. Theory: v2_handwritten/align/algorithms/grpo.md.

    uv run v3 grpo --config tiny
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from shared_data.reward_functions import RewardFunction, check_rewards
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from shared_data.training.schedulers import Schedule
from shared_data.training.schedulers import learning_rate as scheduled
from shared_data.training.training_state import find_checkpoint
from v3_numpy_deep.align.algorithms.grpo import Metrics, group_advantages, grpo_loss
from v3_numpy_deep.align.algorithms.log_probabilities import (
    frozen_copy,
    masked_mean,
    reply_log_probabilities,
)
from v3_numpy_deep.align.algorithms.rollout import Rollout, collect
from v3_numpy_deep.align.alignment_loop import make_optimizer, train_steps
from v3_numpy_deep.align.exam import take_exam
from v3_numpy_deep.align.prompt_data import open_prompts, open_reward
from v3_numpy_deep.align.scoring import Score, choose_prompts, encode_prompts, text_score
from v3_numpy_deep.autograd import Array, Tensor, no_grad
from v3_numpy_deep.data_pipeline.tokenizer.tokenizer import Tokenizer
from v3_numpy_deep.device import resolve_device
from v3_numpy_deep.models.checkpoint import load_model, save_model
from v3_numpy_deep.models.transformer import Transformer
from v3_numpy_deep.pretrain.components.gradient_clipping import clip_gradients
from v3_numpy_deep.pretrain.components.optimizers import AdamW, parameter_groups


@dataclass(frozen=True)
class GrpoOptions:
    """The numbers of an update, with TRL's defaults; in brackets TRL's name where it is another."""

    max_new_tokens: int  # a reply may have [max_completion_length]
    group_size: int = 8  # replies to each prompt [num_generations]
    temperature: float = 1.0
    scale_rewards: Literal["group", "batch", "none"] = "group"
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "dapo"
    beta: float = 0.0  # weight of the KL to the reference
    unbiased_kl: bool = True  # [use_bias_correction_kl]
    epsilon_low: float = 0.2  # [epsilon]
    epsilon_high: float = 0.2
    epochs: int = 1  # over the same replies [num_iterations]
    minibatches: int = 1  # optimizer steps an epoch
    gradient_clip: float = 1.0  # 0 for none [max_grad_norm]


def grpo(settings: Settings, run: RunFolder) -> dict[str, float | int]:
    """Improve the tuned model of the run by comparing its own replies; returns the numbers of the stage.

    Raises `UserError` for a wrong prompt, a reward function that cannot be used, a missing checkpoint, a diverged update.
    """
    section = settings.grpo
    tokenizer = Tokenizer.load(run.tokenizer)
    resolve_device(settings.device)
    prompts, held_out = open_prompts(settings, "grpo")
    function = open_reward(section.reward)
    reference = frozen_copy(load_model(run.model("sft")))
    folder = run.stage("grpo")  # only now: what is refused leaves no trace
    checkpoint = find_checkpoint(folder / "state", run.fingerprint("grpo"), section.resume)
    model = load_model(checkpoint or run.model("sft"))
    optimizer = make_optimizer(parameter_groups(model, section.weight_decay), section)
    names = [field.name for field in fields(GrpoOptions) if field.name != "gradient_clip"]
    options = GrpoOptions(
        **{name: getattr(section, name) for name in names}, gradient_clip=section.max_grad_norm
    )

    def step(number: int) -> Metrics:
        asked = choose_prompts(prompts, section.prompts_per_step, section.seed, number)
        ids = encode_prompts(tokenizer, asked)
        score = text_score(tokenizer, asked, function, options.group_size)
        seed = section.seed * 1_000_003 + number
        metrics = grpo_step(model, optimizer, reference, ids, score, options, seed)
        tokens = (sum(map(len, ids)) + metrics["reply_tokens"] * len(ids)) * options.group_size
        return metrics | {"tokens": tokens}

    write_weights = partial(save_model, model, tokenizer_folder=run.tokenizer.parent)
    last = train_steps(
        settings, run, "grpo", optimizer, checkpoint, step, write_weights, shown=("reward", "kl")
    )
    save_model(model, folder, run.tokenizer.parent)
    numbers = {name: last[name] for name in ("steps", "tokens", "tokens_per_second", "loss")}
    return numbers | take_exam(settings, run, "grpo", model, tokenizer, held_out, function)


def grpo_step(
    model: Transformer,
    optimizer: AdamW,
    reference: Transformer | None,
    prompts: Sequence[Sequence[int]],
    score: Score,
    options: GrpoOptions,
    seed: int,
) -> Metrics:
    """Sample `options.group_size` replies to each prompt, and take `epochs` · `minibatches` optimizer steps on them.

    reference: stays as it is (`log_probabilities.frozen_copy`); None where neither the penalty nor the metric `kl` is wanted.
    seed: decides the replies and the minibatches, so an update that is done again from the same state gives the same.
    Dropout is off throughout: with it, old and new log-probabilities would differ before anything is learned.
    Raises `UserError` for a reward that is no finite number.
    """
    model.eval()
    end = model.config.eos_token_id
    rollout = collect(
        model, prompts, options.max_new_tokens, options.temperature, seed, end, options.group_size
    )
    given = check_rewards(score(rollout.replies()), len(rollout.finished))
    rewards = np.array(given, dtype=model.lm_head.weight.dtype)
    advantages = group_advantages(rewards, options.group_size, options.scale_rewards)
    with no_grad():
        kept = None if reference is None else _log_probabilities(reference, rollout, options).data
        # In a single step the policy is still the one that sampled, and a pass can be saved.
        single = options.epochs * options.minibatches == 1
        old = None if single else _log_probabilities(model, rollout, options).data
    mask = rollout.reply_mask[:, rollout.prompt_length :]

    generator = np.random.default_rng([seed, len(rewards)])
    logs: list[Metrics] = []
    for _ in range(options.epochs):
        for rows in np.array_split(generator.permutation(len(rewards)), options.minibatches):
            new = _log_probabilities(model, rollout.rows(rows), options)
            loss, log = grpo_loss(
                new,
                None if old is None else old[rows],
                None if kept is None else kept[rows],
                advantages[rows],
                mask[rows],
                beta=options.beta,
                epsilon_low=options.epsilon_low,
                epsilon_high=options.epsilon_high,
                loss_type=options.loss_type,
                max_reply_length=options.max_new_tokens,
                unbiased_kl=options.unbiased_kl,
            )
            loss.backward()
            norm = clip_gradients(model.parameters(), options.gradient_clip)
            optimizer.step()
            optimizer.zero_grad()
            log |= _estimates(new.data, None if kept is None else kept[rows], mask[rows])
            logs.append({"loss": loss.item(), "gradient_norm": norm, **log})
    means = {name: sum(log[name] for log in logs) / len(logs) for name in logs[0]}
    return means | {
        "reward": rewards.mean().item(),
        "reward_std": rewards.std(ddof=1).item(),
        "reply_tokens": mask.sum().item() / len(rewards),
        "finished": rollout.finished.sum().item() / len(rewards),
    }


def train_grpo(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    reward: RewardFunction,
    options: GrpoOptions,
    *,
    steps: int,
    prompts_per_step: int = 8,
    learning_rate: float = 1e-6,
    warmup_steps: int = 0,
    schedule: Schedule = "constant",
    seed: int = 0,
    after_step: Callable[[int, Metrics], None] | None = None,
) -> None:
    """`steps` updates on chosen prompts, scored by a function of texts; the model as it comes in is the reference.

    `after_step` hears the number of finished updates and the metrics of the last. A stage that resumes calls `grpo_step` itself.
    """
    reference = frozen_copy(model)
    optimizer = AdamW(parameter_groups(model, weight_decay=0.0), learning_rate)
    for step in range(steps):
        optimizer.learning_rate = scheduled(
            step,
            peak=learning_rate,
            total_steps=steps,
            warmup_steps=warmup_steps,
            schedule=schedule,
            min_ratio=0.1,
        )
        asked = choose_prompts(prompts, prompts_per_step, seed, step)
        score = text_score(tokenizer, asked, reward, options.group_size)
        ids = encode_prompts(tokenizer, asked)
        metrics = grpo_step(model, optimizer, reference, ids, score, options, seed=seed * 1_000_003 + step)
        if after_step is not None:
            after_step(step + 1, metrics)


def _log_probabilities(model: Transformer, rollout: Rollout, options: GrpoOptions) -> Float[Tensor, "B T"]:
    """Of the replies' tokens, in the distribution they were sampled from."""
    return rollout.of_replies(
        reply_log_probabilities(
            model, rollout.input_ids, rollout.reply_mask, rollout.attention_mask, options.temperature
        )
    )


def _estimates(
    new: Float[Array, "B T"], reference: Float[Array, "B T"] | None, mask: Int[Array, "B T"]
) -> Metrics:
    """Entropy and KL to the reference in nats a token, as the replies sample them. KL as k1, whether it is penalized or not."""
    metrics = {"entropy": masked_mean(Tensor(-new), mask).item()}
    if reference is not None:
        metrics["kl"] = masked_mean(Tensor(new - reference), mask).item()
    return metrics

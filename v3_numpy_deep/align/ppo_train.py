"""The stage `ppo`: sample replies, score them, improve policy and value model (Ziegler et al. 2019; Stiennon et al. 2020).

`ppo_step` is one update. The functions stand in algorithms/ppo.py and algorithms/rollout.py; here they are called in order.
Scores come from a function of the replies: a reward model, the story world's reward, or a user's own
(`shared_data.reward_functions`).

Level 1: `trl.experimental.ppo.PPOTrainer`. Level 2: the same over torch; from the same weights it samples the same
replies and ends with the same weights. Theory: v2_handwritten/align/algorithms/ppo.md.

    uv run v3 ppo --config tiny
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float
from shared_data.reward_functions import check_rewards
from shared_data.training.training_state import find_checkpoint

from shared_data.runs import RunFolder
from shared_data.settings import Settings
from shared_data.training.schedulers import Schedule
from shared_data.training.schedulers import learning_rate as scheduled
from v3_numpy_deep.align.algorithms.log_probabilities import frozen_copy, reply_log_probabilities
from v3_numpy_deep.align.algorithms.ppo import (
    Metrics,
    make_experience,
    penalize_missing_end,
    ppo_minibatch_loss,
    value_mask,
)
from v3_numpy_deep.align.algorithms.rollout import Rollout, collect
from v3_numpy_deep.align.alignment_loop import make_optimizer, train_steps
from v3_numpy_deep.align.exam import take_exam
from v3_numpy_deep.align.prompt_data import open_prompts, open_reward
from v3_numpy_deep.align.scoring import (
    Score,
    choose_prompts,
    encode_prompts,
    model_reward,
    model_score,
    text_score,
)
from v3_numpy_deep.autograd import ModuleDict, Tensor, no_grad
from v3_numpy_deep.data_pipeline.tokenizer.tokenizer import Tokenizer
from v3_numpy_deep.device import resolve_device
from v3_numpy_deep.models.checkpoint import load_model, save_model
from v3_numpy_deep.models.reward_model import RewardModel, load_reward_model, save_reward_model
from v3_numpy_deep.models.transformer import Transformer
from v3_numpy_deep.pretrain.components.gradient_clipping import clip_gradients
from v3_numpy_deep.pretrain.components.optimizers import AdamW, parameter_groups


@dataclass(frozen=True)
class PpoOptions:
    """The numbers of an update, with TRL's defaults; in brackets TRL's name where it is another."""

    max_new_tokens: int  # a reply may have [response_length]
    temperature: float = 0.7
    kl_coefficient: float = 0.05  # [kl_coef]
    kl_estimator: Literal["k1", "k3"] = "k1"
    missing_end_penalty: float | None = (
        None  # off the score of a reply that was cut off [missing_eos_penalty]
    )
    gamma: float = 1.0
    lam: float = 0.95
    whiten_rewards: bool = False
    clip_range: float = 0.2  # [cliprange]
    clip_range_value: float = 0.2  # [cliprange_value]
    value_coefficient: float = 0.1  # [vf_coef]
    epochs: int = 4  # over the same replies [num_ppo_epochs]
    minibatches: int = 1  # optimizer steps an epoch [num_mini_batches]
    gradient_clip: float = 0.0  # 0 for none, as in TRL's PPO


def ppo(settings: Settings, run: RunFolder) -> dict[str, float | int]:
    """Improve the tuned model of the run by the scores of its own replies; returns the numbers of the stage.

    Raises `UserError` for a wrong prompt, a reward function that cannot be used, a missing checkpoint, a diverged update.
    """
    section = settings.ppo
    tokenizer = Tokenizer.load(run.tokenizer)
    resolve_device(settings.device)
    prompts, held_out = open_prompts(settings, "ppo")
    function = None if section.reward == "reward_model" else open_reward(section.reward)
    reference = frozen_copy(load_model(run.model("sft")))
    reward_model = load_reward_model(run.model("reward")).eval()
    folder = run.stage("ppo")  # only now: what is refused leaves no trace
    checkpoint = find_checkpoint(folder / "state", run.fingerprint("ppo"), section.resume)
    model = load_model(checkpoint or run.model("sft"))
    # The value model starts as the reward model: what a whole reply is worth is a good guess for the beginning of one. Where another
    # function scores, only its body is of use: values off by 5, for rewards of at most 1, would drown the gradient of the policy.
    value_model = load_reward_model(checkpoint / "value_model" if checkpoint else run.model("reward"))
    if function is not None and not checkpoint:
        value_model.score.weight.data[...] = 0
    optimizer = make_optimizer(actor_critic_groups(model, value_model, section.weight_decay), section)
    names = [field.name for field in fields(PpoOptions) if field.name != "gradient_clip"]
    options = PpoOptions(
        **{name: getattr(section, name) for name in names}, gradient_clip=section.max_grad_norm
    )

    def step(number: int) -> Metrics:
        asked = choose_prompts(prompts, section.prompts_per_step, section.seed, number)
        ids = encode_prompts(tokenizer, asked)
        score = text_score(tokenizer, asked, function) if function else model_score(reward_model, ids)
        seed = section.seed * 1_000_003 + number
        metrics = ppo_step(model, value_model, optimizer, reference, ids, score, options, seed)
        tokens = sum(map(len, ids)) + metrics["reply_tokens"] * len(ids)
        return metrics | {"tokens": tokens}

    def write_weights(target: Path) -> None:
        save_model(model, target, run.tokenizer.parent)
        save_reward_model(value_model, target / "value_model", run.tokenizer.parent)

    last = train_steps(
        settings, run, "ppo", optimizer, checkpoint, step, write_weights, shown=("reward", "objective/kl")
    )
    save_model(model, folder, run.tokenizer.parent)
    numbers = {name: last[name] for name in ("steps", "tokens", "tokens_per_second", "loss")}
    if function is None:
        on_stories = section.source == "story_world"
        function = open_reward("story_world") if on_stories else model_reward(reward_model, tokenizer)
    return numbers | take_exam(settings, run, "ppo", model, tokenizer, held_out, function)


def actor_critic_groups(model: Transformer, value_model: RewardModel, weight_decay: float) -> list[dict]:
    """The parameters of both models for one optimizer."""
    return parameter_groups(ModuleDict({"policy": model, "value": value_model}), weight_decay)


def ppo_step(
    model: Transformer,
    value_model: RewardModel,
    optimizer: AdamW,
    reference: Transformer,
    prompts: Sequence[Sequence[int]],
    score: Score,
    options: PpoOptions,
    seed: int,
) -> Metrics:
    """Sample a reply to each prompt, and take `epochs` · `minibatches` optimizer steps on both models.

    reference: stays as it is (`log_probabilities.frozen_copy`). optimizer: over `actor_critic_groups`.
    seed: decides the replies and the minibatches, so an update that is done again from the same state gives the same.
    Dropout is off throughout: with it, old and new log-probabilities would differ before anything is learned.
    Raises `UserError` for a reward that is no finite number.
    """
    model.eval()
    value_model.eval()
    rollout = collect(
        model, prompts, options.max_new_tokens, options.temperature, seed, model.config.eos_token_id
    )
    given = check_rewards(score(rollout.replies()), len(rollout.finished))
    scores = np.array(given, dtype=model.lm_head.weight.dtype)
    mask = rollout.reply_mask[:, rollout.prompt_length :]
    # Where it learns from all replies at once, the first update has its forward pass behind it: that of the experience.
    whole = options.minibatches == 1
    with nullcontext() if whole else no_grad():
        old, old_values = _log_probabilities(model, rollout, options), _values(value_model, rollout)
    with no_grad():
        experience, metrics = make_experience(
            old.data,
            _log_probabilities(reference, rollout, options).data,
            penalize_missing_end(scores, rollout.finished, options.missing_end_penalty),
            old_values.data,
            mask,
            options.kl_coefficient,
            options.kl_estimator,
            options.gamma,
            options.lam,
            options.whiten_rewards,
        )
    metrics |= {
        "reward": scores.mean().item(),  # without the penalty
        "reply_tokens": mask.sum().item() / len(scores),
        "finished": rollout.finished.sum().item() / len(scores),
    }

    parameters = [*model.parameters(), *value_model.parameters()]
    generator = np.random.default_rng([seed, len(scores)])
    logs: list[Metrics] = []
    for epoch in range(options.epochs):
        for rows in np.array_split(generator.permutation(len(scores)), options.minibatches):
            if whole and epoch == 0:
                new, new_values = old[rows], old_values[rows]
            else:
                some = rollout.rows(rows)
                new, new_values = _log_probabilities(model, some, options), _values(value_model, some)
            loss, log = ppo_minibatch_loss(
                new,
                new_values,
                experience.rows(rows),
                options.clip_range,
                options.clip_range_value,
                options.value_coefficient,
            )
            loss.backward()
            norm = clip_gradients(parameters, options.gradient_clip)
            optimizer.step()
            optimizer.zero_grad()
            logs.append({"loss": loss.item(), "gradient_norm": norm, **log})
    return metrics | {name: sum(log[name] for log in logs) / len(logs) for name in logs[0]}


def train_ppo(
    model: Transformer,
    value_model: RewardModel,
    reward_model: RewardModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    options: PpoOptions,
    *,
    steps: int,
    prompts_per_step: int = 64,
    learning_rate: float = 3e-6,
    warmup_steps: int = 0,
    schedule: Schedule = "constant",
    seed: int = 0,
    after_step: Callable[[int, Metrics], None] | None = None,
) -> None:
    """`steps` updates on chosen prompts, scored by a reward model; the model as it comes in is the reference.

    `after_step` hears the number of finished updates and the metrics of the last. A stage that resumes, or whose scores come
    from elsewhere, calls `ppo_step` itself.
    """
    reference = frozen_copy(model)
    optimizer = AdamW(actor_critic_groups(model, value_model, weight_decay=0.0), learning_rate)
    for step in range(steps):
        optimizer.learning_rate = scheduled(
            step,
            peak=learning_rate,
            total_steps=steps,
            warmup_steps=warmup_steps,
            schedule=schedule,
            min_ratio=0.1,
        )
        asked = encode_prompts(tokenizer, choose_prompts(prompts, prompts_per_step, seed, step))
        score = model_score(reward_model, asked)
        metrics = ppo_step(
            model, value_model, optimizer, reference, asked, score, options, seed=seed * 1_000_003 + step
        )
        if after_step is not None:
            after_step(step + 1, metrics)


def _log_probabilities(model: Transformer, rollout: Rollout, options: PpoOptions) -> Float[Tensor, "B T"]:
    """Of the replies' tokens, in the distribution they were sampled from."""
    return rollout.of_replies(
        reply_log_probabilities(
            model, rollout.input_ids, rollout.reply_mask, rollout.attention_mask, options.temperature
        )
    )


def _values(value_model: RewardModel, rollout: Rollout) -> Float[Tensor, "B T"]:
    """Of the states that count: before each of the replies' tokens, and after the last one."""
    first = rollout.prompt_length
    read = np.zeros_like(rollout.reply_mask, bool)
    read[:, first - 1 : -1] = value_mask(rollout.reply_mask[:, first:])
    return rollout.of_replies(value_model.scores(rollout.input_ids, rollout.attention_mask, read)[:, :-1])

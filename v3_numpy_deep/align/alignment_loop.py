"""The loop around the steps of the stages `reward`, `dpo`, `ppo` and `grpo`: learning rate, step, log, checkpoint; again.

What a step is differs: a batch of pairs (reward model, DPO), or replies that the policy has just written (PPO, GRPO). What
surrounds it does not, and a run that was killed continues bit for bit: a step must depend only on weights, optimizer, its number
and the place in the data.

Level 1: the trainers of trl have such a loop inside. Level 2: the same as here over torch.

    train_steps(settings, run, "dpo", optimizer, checkpoint, step, write_weights, loader)
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shared_data.errors import UserError
from shared_data.metrics_log import MetricsLog
from shared_data.progress import progress
from shared_data.runs import RunFolder
from shared_data.settings import OptimizerSettings, PreferenceSettings, Settings
from shared_data.training.schedulers import learning_rate
from shared_data.training.training_state import (
    StopRequest,
    TrainingState,
    clear_training_states,
    load_training_state,
)
from v3_numpy_deep.align.algorithms.dpo import PreferenceBatch
from v3_numpy_deep.align.preference_data import PreferenceLoader
from v3_numpy_deep.autograd import Tensor
from v3_numpy_deep.models.reward_model import RewardModel
from v3_numpy_deep.models.transformer import Transformer
from v3_numpy_deep.pretrain.components.after_step import AfterStep
from v3_numpy_deep.pretrain.components.gradient_clipping import clip_gradients
from v3_numpy_deep.pretrain.components.optimizers import AdamW

Metrics = dict[str, float | int]


def make_optimizer(groups: list[dict[str, Any]], section: OptimizerSettings) -> AdamW:
    """AdamW with the numbers of a stage's settings."""
    betas = (section.adam_beta1, section.adam_beta2)
    return AdamW(groups, section.learning_rate, betas, section.adam_epsilon)


def train_steps(
    settings: Settings,
    run: RunFolder,
    stage: str,
    optimizer: AdamW,
    checkpoint: Path | None,
    step: Callable[[int], Metrics],
    write_weights: Callable[[Path], None],
    loader: PreferenceLoader | None = None,
    evaluate: Callable[[], Metrics] | None = None,
    shown: Sequence[str] = ("loss",),
) -> Metrics:
    """All steps of a stage that `checkpoint` has not behind it; returns the numbers of the last one and of the whole.

    step(number): makes one update and returns its numbers, among them `tokens`, how many it has worked through.
    write_weights(folder): puts the weights of a checkpoint into a folder.
    Raises `UserError` where a number of a step is not finite; checkpoints of earlier steps are kept.
    """
    section: OptimizerSettings = getattr(settings, stage)
    state = TrainingState()
    if checkpoint:
        state = load_training_state(checkpoint, optimizer)
        if loader is not None:
            loader.load_state_dict(state.loader)
    else:
        clear_training_states(run.stage(stage) / "state")
    log = MetricsLog(run.stage(stage) / "metrics_log.jsonl")
    log.truncate_after(state.step)
    with progress(section.steps, stage, done=state.step) as bar, StopRequest() as stop:
        after_step = AfterStep(
            settings, run, stage, optimizer, state, log, bar, stop, write_weights, evaluate, shown=shown
        )
        while state.step < section.steps:
            started = time.perf_counter()
            optimizer.learning_rate = learning_rate(
                state.step,
                peak=section.learning_rate,
                total_steps=section.steps,
                warmup_steps=section.warmup_steps,
                schedule=section.schedule,
                min_ratio=section.min_learning_rate_ratio,
                decay_fraction=section.decay_fraction,
            )
            numbers = step(state.step)
            _stop_if_not_finite(numbers, state.step + 1, section)
            tokens, seconds = int(numbers.pop("tokens")), time.perf_counter() - started
            state.step += 1
            state.tokens += tokens
            state.seconds += seconds
            state.loader = {} if loader is None else loader.state_dict()
            numbers["learning_rate"] = optimizer.learning_rate
            after_step.record(state.step, numbers, tokens / seconds)
    last = log.rows()[-1]
    return {
        **{name: value for name, value in last.items() if name not in ("step", "learning_rate")},
        "steps": state.step,
        "tokens": state.tokens,
        "tokens_per_second": state.tokens / max(state.seconds, 1e-9),
    }


def preference_step(
    model: Transformer | RewardModel,
    optimizer: AdamW,
    loader: PreferenceLoader,
    batch_loss: Callable[[PreferenceBatch], tuple[Tensor, Metrics]],
    section: PreferenceSettings,
    number: int,
) -> Metrics:
    """One update on the next pairs: the mean loss over `gradient_accumulation_steps` batches, its gradient clipped."""
    model.train()
    # As in pretraining, dropout draws from a generator that (seed, step) seed anew.
    model.dropout_generator = np.random.default_rng([section.seed, number])
    batches = section.gradient_accumulation_steps
    totals: Counter[str] = Counter()
    tokens = 0
    for _ in range(batches):
        batch = loader.next_batch()
        loss, metrics = batch_loss(batch)
        (loss / batches).backward()
        totals.update({"loss": loss.item(), **metrics})
        tokens += int(batch.attention_mask.sum())
    norm = clip_gradients(model.parameters(), section.max_grad_norm)
    if math.isfinite(norm):
        optimizer.step()
    optimizer.zero_grad()
    means = {name: total / batches for name, total in totals.items()}
    return means | {"gradient_norm": norm, "tokens": tokens}


def _stop_if_not_finite(numbers: Metrics, step: int, section: OptimizerSettings) -> None:
    """A run beyond saving ends here, with its checkpoints as they are."""
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise UserError(
                f"training diverged: {name.replace('_', ' ')} is {value} at step {step}; lower {section.stage}.learning_rate "
                f"(now {section.learning_rate:g}) or {section.stage}.max_grad_norm (now {section.max_grad_norm:g}); checkpoints of "
                "earlier steps are kept"
            )

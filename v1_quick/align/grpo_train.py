"""The stage `grpo`: `trl.GRPOTrainer` (Shao et al. 2024).

The trainer samples, scores and updates by itself; what we add is the names that all levels share, the positions of padded
prompts, and the reference model, which it would otherwise fetch from the hub. Levels 2 and 3 write out one update, `grpo_step`;
they also continue a run that was killed, which this one starts over. Theory: v2_handwritten/align/algorithms/grpo.md.

    uv run v1 grpo --config tiny
"""

import copy
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from shared_data.reward_functions import RewardFunction, score_replies

from shared_data.errors import UserError
from shared_data.progress import progress
from shared_data.runs import RunFolder
from shared_data.settings import GrpoSettings, Settings
from v1_quick.align.algorithms.rollout import _check
from v1_quick.align.alignment_loop import (
    _LOGGED,
    Metrics,
    _AfterStep,
    _configure,
    _kept_configuration,
    _listen,
    _without_dropout,
)
from v1_quick.align.exam import take_exam
from v1_quick.align.prompt_data import open_prompts, open_reward
from v1_quick.align.scoring import decode_replies, encode_prompts
from v1_quick.data_pipeline.tokenizer.tokenizer import Tokenizer
from v1_quick.device import resolve_device
from v1_quick.finetune.chat_data import _library_tokenizer
from v1_quick.models.checkpoint import load_model, save_model
from v1_quick.models.transformer import Transformer
from v1_quick.pretrain.components.schedulers import Schedule

# What the trainer logs besides, and what level 2 calls it.
_METRICS = {
    "clip_ratio/low_mean": "clip_ratio/low_mean",
    "clip_ratio/high_mean": "clip_ratio/high_mean",
    "clip_ratio/region_mean": "clip_ratio/region_mean",
    "entropy": "entropy",
    "kl": "kl",  # only where `beta` makes it compute one
    "reward": "reward",
    "reward_std": "reward_std",
    "completions/mean_length": "reply_tokens",
    "completions/clipped_ratio": "finished",
}


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


def grpo(settings: Settings, run: RunFolder) -> dict[str, float]:
    """Improve the tuned model of the run by comparing its own replies; returns the numbers of the stage.

    Raises `UserError` for a wrong prompt, a reward function that cannot be used, a missing checkpoint, a diverged update, and
    for numbers that the trainer cannot work with.
    """
    section = settings.grpo
    tokenizer = Tokenizer.load(run.tokenizer)
    device = resolve_device(settings.device)
    prompts, held_out = open_prompts(settings, "grpo")
    function = open_reward(section.reward)
    model = load_model(run.model("sft"), device=device)
    names = [field.name for field in fields(GrpoOptions) if field.name != "gradient_clip"]
    options = GrpoOptions(
        **{name: getattr(section, name) for name in names}, gradient_clip=section.max_grad_norm
    )
    _check_options(options, section.prompts_per_step)
    _check(
        encode_prompts(tokenizer, prompts),
        options.max_new_tokens,
        options.temperature,
        model.config.max_position_embeddings,
    )
    folder = run.stage("grpo")  # only now: what is refused leaves no trace
    with progress(section.steps, "grpo") as bar:
        after_step = _AfterStep(settings, run, "grpo", bar, shown=("reward", "kl"))
        _train(model, tokenizer, prompts, function, options, section, after_step.heard)
    save_model(model, folder, run.tokenizer.parent)
    last = after_step.last()
    numbers = {name: last[name] for name in ("steps", "tokens", "tokens_per_second", "loss")}
    return numbers | take_exam(settings, run, "grpo", model, tokenizer, held_out, function)


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
    """`steps` updates on the prompts, scored by a function of texts; the model as it comes in is the reference.

    Raises `UserError` where the replies of an update are not `options.minibatches` equal parts.
    """
    section = GrpoSettings(
        steps=steps,
        prompts_per_step=prompts_per_step,
        learning_rate=learning_rate,
        warmup_steps=warmup_steps,
        schedule=schedule,
        seed=seed,
        adam_beta2=0.999,
        max_grad_norm=options.gradient_clip,
    )
    _check_options(options, prompts_per_step)
    _train(model, tokenizer, prompts, reward, options, section, after_step or (lambda *_: None))


def _train(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    reward: RewardFunction,
    options: GrpoOptions,
    section: GrpoSettings,
    after_step: Callable[[int, Metrics], None],
) -> None:
    """The trainer with these options, and the steps and the optimizer of the settings."""
    import datasets
    from trl import GRPOConfig, GRPOTrainer

    def library_reward(prompts: list, completion_ids: list, **_: Any) -> list[float]:
        asked = [turns[-1]["content"] for turns in prompts]
        return score_replies(reward, asked, decode_replies(tokenizer, completion_ids))

    enough = list(prompts) * math.ceil(section.prompts_per_step / len(prompts))
    conversations = [[{"role": "user", "content": prompt}] for prompt in enough]
    replies, steps_per_update = (
        section.prompts_per_step * options.group_size,
        options.epochs * options.minibatches,
    )
    _without_dropout(model)
    positions = model.library.register_forward_pre_hook(_count_positions, with_kwargs=True)
    with tempfile.TemporaryDirectory() as scratch, _kept_configuration(model):
        trainer = GRPOTrainer(
            model=model.library,
            reward_funcs=library_reward,
            args=_configure(
                GRPOConfig,
                section,
                next(model.parameters()).device,
                scratch,
                # The trainer's steps are the optimizer's; the learning rate moves within an update of several.
                max_steps=section.steps * steps_per_update,
                warmup_steps=section.warmup_steps * steps_per_update,
                logging_steps=steps_per_update,
                per_device_train_batch_size=replies // options.minibatches,
                steps_per_generation=options.minibatches,
                num_iterations=options.epochs,
                num_generations=options.group_size,
                max_completion_length=options.max_new_tokens,
                temperature=options.temperature,
                scale_rewards=options.scale_rewards,
                loss_type=options.loss_type,
                beta=0.0,  # see below
                use_bias_correction_kl=options.unbiased_kl,
                epsilon=options.epsilon_low,
                epsilon_high=options.epsilon_high,
            ),
            train_dataset=datasets.Dataset.from_dict({"prompt": conversations}),
            processing_class=_library_tokenizer(tokenizer),
        )
        # Given a beta, the trainer would load its reference by the model's name.
        trainer.beta = options.beta
        if options.beta:
            trainer.ref_model = copy.deepcopy(model.library).eval().requires_grad_(False)

        def complete(step: int, numbers: Metrics) -> None:
            after_step(step, numbers | {"finished": 1 - numbers["finished"]})  # the trainer counts the others

        _listen(trainer, complete, _LOGGED | _METRICS, steps_per_update)
        trainer.train()
    positions.remove()


def _count_positions(_module: Any, arguments: Any, keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A hook: the trainer of TRL 1.12 passes no positions, and GPT-2 would count the padding before a prompt."""
    mask, ids = keywords.get("attention_mask"), keywords.get("input_ids")
    if (
        keywords.get("position_ids") is None
        and mask is not None
        and ids is not None
        and mask.shape == ids.shape
    ):
        keywords = keywords | {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    return arguments, keywords


def _check_options(options: GrpoOptions, prompts_per_step: int) -> None:
    """Raises `UserError` for what the trainer cannot deal out."""
    replies = prompts_per_step * options.group_size
    if replies % options.minibatches:
        raise UserError(
            f"{replies} replies are not {options.minibatches} equal parts; choose a number of minibatches that divides them"
        )

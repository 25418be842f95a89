"""The stage `ppo`: `trl.experimental.ppo.PPOTrainer` (Ziegler et al. 2019).

The trainer samples, asks the reward model, and updates policy and value model by itself. It has no place for a reward function
of texts and clips no gradient; a module in the place of the reward model and a hook do. Levels 2 and 3 write out one update,
`ppo_step`; they also continue a run that was killed, which this one starts over. Theory: v2_handwritten/align/algorithms/ppo.md.

    uv run v1 ppo --config tiny
"""

import copy
import gc
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any, Literal

import torch
from shared_data.reward_functions import RewardFunction, score_replies
from torch import Tensor, nn

from shared_data.errors import UserError
from shared_data.progress import progress
from shared_data.runs import RunFolder
from shared_data.settings import PpoSettings, Settings
from v1_quick.align.algorithms.rollout import _check
from v1_quick.align.alignment_loop import (
    Metrics,
    _AfterStep,
    _configure,
    _kept_configuration,
    _listen,
    _without_dropout,
)
from v1_quick.align.exam import take_exam
from v1_quick.align.prompt_data import open_prompts, open_reward
from v1_quick.align.scoring import decode_replies, encode_prompts, model_reward
from v1_quick.data_pipeline.tokenizer.tokenizer import Tokenizer
from v1_quick.device import resolve_device
from v1_quick.finetune.chat_data import _library_tokenizer
from v1_quick.models.checkpoint import load_model, save_model
from v1_quick.models.reward_model import RewardModel, load_reward_model
from v1_quick.models.transformer import Transformer
from v1_quick.pretrain.components.gradient_clipping import clip_gradients
from v1_quick.pretrain.components.schedulers import Schedule

# What the trainer logs, and what level 2 calls it.
_METRICS = {
    "objective/kl": "objective/kl",
    "objective/entropy": "objective/entropy",
    "objective/non_score_reward": "objective/non_score_reward",
    "objective/rlhf_reward": "objective/rlhf_reward",
    "objective/scores": "objective/scores",
    "loss/policy_avg": "loss/policy",
    "policy/approxkl_avg": "policy/approxkl",
    "policy/clipfrac_avg": "policy/clipfrac",
    "val/ratio": "val/ratio",
    "loss/value_avg": "loss/value",
    "val/clipfrac_avg": "val/clipfrac",
    "lr": "learning_rate",
}


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


def ppo(settings: Settings, run: RunFolder) -> dict[str, float]:
    """Improve the tuned model of the run by the scores of its own replies; returns the numbers of the stage.

    Raises `UserError` for a wrong prompt, a reward function that cannot be used, a missing checkpoint, a diverged update, and
    for numbers that the trainer cannot work with.
    """
    section = settings.ppo
    tokenizer = Tokenizer.load(run.tokenizer)
    device = resolve_device(settings.device)
    prompts, held_out = open_prompts(settings, "ppo")
    function = None if section.reward == "reward_model" else open_reward(section.reward)
    model = load_model(run.model("sft"), device=device)
    reward_model = load_reward_model(run.model("reward"), device=device)
    # The value model starts as the reward model: what a whole reply is worth is a good guess for the beginning of one. Where another
    # function scores, only its body is of use: values off by 5, for rewards of at most 1, would drown the gradient of the policy.
    value_model = load_reward_model(run.model("reward"), device=device)
    if function is not None:
        torch.nn.init.zeros_(value_model.library.score.weight)
    names = [field.name for field in fields(PpoOptions) if field.name != "gradient_clip"]
    options = PpoOptions(
        **{name: getattr(section, name) for name in names}, gradient_clip=section.max_grad_norm
    )
    _check_options(options, section.prompts_per_step)
    _check(
        encode_prompts(tokenizer, prompts),
        options.max_new_tokens,
        options.temperature,
        model.config.max_position_embeddings,
    )
    judge = reward_model.library if function is None else _Judge(function, tokenizer, prompts)
    folder = run.stage("ppo")  # only now: what is refused leaves no trace
    with progress(section.steps, "ppo") as bar:
        after_step = _AfterStep(settings, run, "ppo", bar, shown=("reward", "objective/kl"))
        _train(model, value_model, judge, tokenizer, prompts, options, section, after_step.heard)
    save_model(model, folder, run.tokenizer.parent)
    last = after_step.last()
    numbers = {name: last[name] for name in ("steps", "tokens", "tokens_per_second", "loss")}
    if function is None:
        on_stories = section.source == "story_world"
        function = open_reward("story_world") if on_stories else model_reward(reward_model, tokenizer)
    return numbers | take_exam(settings, run, "ppo", model, tokenizer, held_out, function)


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
    """`steps` updates on the prompts, scored by a reward model; the model as it comes in is the reference."""
    section = PpoSettings(
        steps=steps,
        prompts_per_step=prompts_per_step,
        learning_rate=learning_rate,
        warmup_steps=warmup_steps,
        schedule=schedule,
        seed=seed,
        adam_beta2=0.999,
    )
    hear = after_step or (lambda *_: None)
    _check_options(options, prompts_per_step)
    _train(model, value_model, reward_model.library, tokenizer, prompts, options, section, hear)


def _train(
    model: Transformer,
    value_model: RewardModel,
    judge: Any,  # a module with `base_model_prefix` and `score`, as reward models of transformers
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    options: PpoOptions,
    section: PpoSettings,
    after_step: Callable[[int, Metrics], None],
) -> None:
    """The trainer with these options, and the steps and the optimizer of the settings."""
    import datasets
    import transformers
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    library_tokenizer = _library_tokenizer(tokenizer)
    library_tokenizer.padding_side = "left"
    asked = encode_prompts(tokenizer, prompts) * math.ceil(section.prompts_per_step / len(prompts))
    data = datasets.Dataset.from_dict({"input_ids": asked})
    heard = _Counts(library_tokenizer.eos_token_id)
    reader = getattr(judge, judge.base_model_prefix)
    listening = reader.register_forward_pre_hook(heard.rollout, with_kwargs=True)
    with tempfile.TemporaryDirectory() as scratch, _kept_configuration(model):
        # The trainer seeds torch; its minibatches it shuffles by NumPy's global generator.
        transformers.set_seed(section.seed)
        trainer: Any = PPOTrainer(
            args=_configure(
                PPOConfig,
                section,
                next(model.parameters()).device,
                scratch,
                total_episodes=section.steps * section.prompts_per_step,
                per_device_train_batch_size=section.prompts_per_step,
                num_mini_batches=options.minibatches,
                num_ppo_epochs=options.epochs,
                response_length=options.max_new_tokens,
                temperature=options.temperature,
                stop_token="eos",
                missing_eos_penalty=options.missing_end_penalty,
                kl_coef=options.kl_coefficient,
                kl_estimator=options.kl_estimator,
                gamma=options.gamma,
                lam=options.lam,
                whiten_rewards=options.whiten_rewards,
                cliprange=options.clip_range,
                cliprange_value=options.clip_range_value,
                vf_coef=options.value_coefficient,
                num_sample_generations=0,
            ),
            processing_class=library_tokenizer,
            model=model.library,
            ref_model=copy.deepcopy(model.library),
            reward_model=judge,
            value_model=value_model.library,
            train_dataset=data,
            eval_dataset=data,
        )
        trainer.accelerator.print = lambda *_, **__: None  # it would announce itself
        _without_dropout(trainer.model)

        def clip(*_: Any) -> None:
            heard.norms.append(clip_gradients(trainer.model.parameters(), options.gradient_clip))

        trainer.optimizer.optimizer.register_step_pre_hook(clip)

        def complete(step: int, numbers: Metrics) -> None:
            numbers |= heard.numbers()
            penalty = (options.missing_end_penalty or 0.0) * (1 - numbers["finished"])
            numbers["reward"] = numbers["objective/scores"] + penalty  # as it was before the penalty
            numbers["loss"] = numbers["loss/policy"] + options.value_coefficient * numbers["loss/value"]
            after_step(step, numbers)

        _listen(trainer, complete, _METRICS)
        gc.freeze()  # the trainer collects garbage twice an update, half a second each; what is loaded by now is none
        trainer.train()
        gc.unfreeze()
    listening.remove()


def _check_options(options: PpoOptions, prompts_per_step: int) -> None:
    """Raises `UserError` for what the trainer refuses with a bare assertion."""
    size, rest = divmod(prompts_per_step, options.minibatches)
    if rest:
        raise UserError(
            f"trl cannot deal {prompts_per_step} prompts out to {options.minibatches} minibatches; choose a number that divides "
            "them, or use level 2 or 3"
        )
    if options.whiten_rewards and size < 8:
        raise UserError(
            f"trl whitens rewards in minibatches of at least 8 replies, not {size}; raise ppo.prompts_per_step, or use level 2 or 3"
        )


class _Counts:
    """What the trainer does not count, or not well: tokens, replies that ended by themselves, norms of gradients."""

    def __init__(self, end: int) -> None:
        self.end, self.tokens = end, 0
        self.finished, self.norms = list[bool](), list[float]()

    def rollout(self, _module: Any, _arguments: Any, keywords: dict[str, Any]) -> None:
        """A hook of the reward model, which reads every prompt and reply once, the reply up to its end."""
        mask: Tensor = keywords["attention_mask"].long()
        last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(-1)
        self.finished += (keywords["input_ids"].gather(-1, last[:, None]) == self.end).flatten().tolist()
        self.tokens += int(mask.sum())

    def numbers(self) -> Metrics:
        """Of the update that has just ended; `tokens` of all so far."""
        numbers = {
            "finished": sum(self.finished) / len(self.finished),
            "gradient_norm": sum(self.norms) / len(self.norms),
            "tokens": self.tokens,
        }
        self.finished.clear()
        self.norms.clear()
        return numbers


class _Judge(nn.Module):
    """A function in the place of a reward model: what the trainer asks for a hidden state answers with the reward."""

    base_model_prefix = "reader"

    def __init__(self, function: RewardFunction, tokenizer: Tokenizer, prompts: Sequence[str]) -> None:
        super().__init__()
        self.reader = _Reader(function, tokenizer, prompts)
        self.score = nn.Identity()


class _Reader(nn.Module):
    """Reads prompts and replies from ids, and repeats the reward of each row at all of its tokens."""

    def __init__(self, function: RewardFunction, tokenizer: Tokenizer, prompts: Sequence[str]) -> None:
        super().__init__()
        self.function, self.tokenizer = function, tokenizer
        ids = encode_prompts(tokenizer, prompts)
        self.prompts = {tuple(row): prompt for row, prompt in zip(ids, prompts, strict=True)}
        self.lengths = sorted({len(row) for row in ids}, reverse=True)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> Any:
        """[B, T, 1], as the last of `hidden_states`."""
        asked, replies = [], []
        for ids, mask in zip(input_ids.tolist(), attention_mask.long().tolist(), strict=True):
            start = mask.index(1)
            end = [*mask[start:], 0].index(
                0
            ) + start  # the trainer, too, lets a reply end where padding begins
            row = ids[start:end]
            length = next(n for n in self.lengths if tuple(row[:n]) in self.prompts)
            asked.append(self.prompts[tuple(row[:length])])
            replies.append(row[length:])
        rewards = score_replies(self.function, asked, decode_replies(self.tokenizer, replies))
        column = torch.tensor(rewards, device=input_ids.device)[:, None, None]
        return SimpleNamespace(hidden_states=[column.expand(-1, input_ids.shape[1], -1)])

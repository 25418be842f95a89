"""What the stages share around a trainer: its arguments from the settings, its checkpoints, what it logged.

The loop itself (batches, clipping, schedule, checkpoints, resume, progress) is inside `transformers.Trainer` and TRL's trainers.
Settings have the names of `TrainingArguments`, so most are passed as they are.

    arguments = DPOConfig(**trainer_arguments(settings, "dpo", run), beta=0.1)
"""

import math
import shutil
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainingArguments

from shared_data.device import resolve_device
from shared_data.errors import UserError
from shared_data.files import atomic_write, json_bytes
from shared_data.runs import RunFolder
from shared_data.settings import OptimizerSettings, Settings
from shared_data.training.training_run import Metrics


def trainer_arguments(settings: Settings, stage: str, run: RunFolder) -> dict[str, Any]:
    """The settings of a stage that every trainer has, as keyword arguments of `TrainingArguments`.

    Raises `UserError` for a device or a precision that the trainers do not have.
    """
    section: OptimizerSettings = getattr(settings, stage)
    device = resolve_device(settings.device)
    if device.index is not None:
        raise UserError(
            f"the trainers use all GPUs that are visible; use --device cuda, with CUDA_VISIBLE_DEVICES={device.index}"
        )
    if section.fp16 and device.type == "cpu":
        raise UserError(f"the trainers have float16 on GPUs only; use --set {stage}.bf16=true, or level 2")
    names = {field.name for field in fields(TrainingArguments)} - {"optim", "resume_from_checkpoint"}
    evaluates = section.eval_steps > 0 and stage not in ("ppo", "grpo")
    return section.model_dump(include=names) | {
        "output_dir": str(_checkpoint_folder(section, stage, run)),
        "per_device_eval_batch_size": section.model_dump()["per_device_train_batch_size"],
        "eval_strategy": "steps" if evaluates else "no",
        "save_strategy": "steps" if section.save_steps else "no",
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # it would hide a diverged training
        "use_cpu": device.type == "cpu",
        "dataloader_pin_memory": device.type == "cuda",
        "disable_tqdm": not sys.stderr.isatty(),
        "report_to": "none",
    }


def last_checkpoint(arguments: TrainingArguments) -> str | None:
    """The newest whole checkpoint, for `trainer.train(resume_from_checkpoint=…)`; trainer_state.json is written last."""
    whole = [path.parent for path in Path(arguments.output_dir).glob("checkpoint-*/trainer_state.json")]
    return max(map(str, whole), key=lambda name: int(name.rpartition("-")[2]), default=None)


def train_and_evaluate(trainer: Trainer) -> None:
    """Train from the last checkpoint, then evaluate. A mixture of experts is balanced by the library's loss meanwhile.

    Not in the saved model: there the library's loss would stop batched generation (transformers 5.23).
    """
    config = trainer.model.config
    is_balanced = getattr(config, "router_aux_loss_coef", 0) > 0
    if is_balanced:
        config.output_router_logits = True
    trainer.train(resume_from_checkpoint=last_checkpoint(trainer.args))
    trainer.evaluate()
    if is_balanced:
        config.output_router_logits = False


def logged_metrics(trainer: Trainer, folder: Path) -> Metrics:
    """The last value of each number that the trainer logged; all of them are written to metrics_log.jsonl, for the report.

    Raises `UserError` where one is not finite.
    """
    rows: dict[int, Metrics] = {}
    for entry in trainer.state.log_history:
        rows.setdefault(entry["step"], {}).update(entry)
    for step, row in rows.items():
        row = {name: value for name, value in row.items() if value is not None}  # a mean of nothing
        for name in _LOSSES & row.keys():
            if not math.isfinite(row[name]):
                raise UserError(
                    f"training diverged: {name} is {row[name]} at step {step}; lower the learning rate (now "
                    f"{trainer.args.learning_rate:g}) or raise warmup_steps (now {trainer.args.warmup_steps})"
                )
        rows[step] = {name: value for name, value in row.items() if math.isfinite(value)}  # JSON has no NaN
    with atomic_write(folder / "metrics_log.jsonl") as file:
        file.writelines(map(json_bytes, rows.values()))
    last = {name: value for row in rows.values() for name, value in row.items()}
    metrics = {name: value for name, value in last.items() if not name.endswith(_CLOCK)}
    metrics["steps"] = metrics.pop("step")
    tokens = last.get("num_tokens", last.get("num_input_tokens_seen"))
    if tokens is not None:  # PPO counts none
        metrics["tokens"] = int(tokens)
        metrics["tokens_per_second"] = last.get("train_tokens_per_second", tokens / last["train_runtime"])
    return metrics


_LOSSES = {"loss", "grad_norm", "eval_loss", "loss/policy_avg", "loss/value_avg"}
_CLOCK = ("_runtime", "_per_second", "_time", "_flos", "epoch")


def _checkpoint_folder(section: OptimizerSettings, stage: str, run: RunFolder) -> Path:
    """Where the trainer keeps its checkpoints, apart for each choice of settings; those of others are deleted."""
    folder = run.stage(stage) / "checkpoints" / run.fingerprint(stage)
    for old in folder.parent.glob("*"):
        if old != folder or not section.resume_from_checkpoint:
            shutil.rmtree(old)
    return folder

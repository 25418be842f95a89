"""The stages of the pipeline: what each needs, and which settings its result depends on.

To add a stage, add its line here (and its function to each level's `cli.py`): the command line, `run`, the fingerprints
and the report's order follow from this table.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shared_data.settings import Settings


@dataclass(frozen=True)
class Stage:
    """One stage: a function `(settings, run) -> numbers` of each level, and a folder of the run."""

    summary: str  # one line for `--help`
    after: str | None  # the stage whose result it reads
    sections: tuple[str, ...]  # the settings sections it reads
    local_paths: tuple[str, ...] = ()  # settings that may name local files, which are inputs too
    resumable: bool = (
        False  # an interrupted run is continued in place; others are redone from their beginning
    )


STAGES = {
    "data": Stage(
        "Read the corpus, clean it, remove duplicates, split it.",
        after=None,
        sections=("data",),
        local_paths=("data.source",),
    ),
    "tokenizer": Stage(
        "Train or load the tokenizer and turn the documents into token files.",
        after="data",
        sections=("tokenizer",),
        local_paths=("tokenizer.load", "tokenizer.chat_source"),
    ),
    "pretrain": Stage(
        "Train the language model; continues from its last checkpoint.",
        after="tokenizer",
        sections=("model", "pretrain"),
        local_paths=("pretrain.model_name_or_path",),
        resumable=True,
    ),
    "sft": Stage(
        "Fine-tune the model on conversations, so that it answers; continues from its last checkpoint.",
        after="pretrain",
        sections=("sft",),
        local_paths=("sft.source", "sft.model_name_or_path"),
        resumable=True,
    ),
    "reward": Stage(
        "Train a reward model on preference pairs; continues from its last checkpoint.",
        after="sft",
        sections=("reward",),
        local_paths=("reward.source", "reward.model_name_or_path"),
        resumable=True,
    ),
    "dpo": Stage(
        "Align the fine-tuned model with preference pairs (DPO); continues from its last checkpoint.",
        after="sft",
        sections=("dpo",),
        local_paths=("dpo.source", "dpo.model_name_or_path"),
        resumable=True,
    ),
    "ppo": Stage(
        "Align the fine-tuned model with scores of its completions (PPO); continues from its last checkpoint (levels 2 and 3).",
        after="reward",
        sections=("ppo",),
        local_paths=("ppo.source", "ppo.reward", "ppo.model_name_or_path"),
        resumable=True,
    ),
    "grpo": Stage(
        "Align the fine-tuned model with a reward function (GRPO); continues from its last checkpoint.",
        after="sft",
        sections=("grpo",),
        local_paths=("grpo.source", "grpo.reward", "grpo.model_name_or_path"),
        resumable=True,
    ),
    "evaluate": Stage(
        "Measure perplexity and bits per byte on held-out text, beside the entropy floor.",
        after="pretrain",
        sections=("evaluate",),
    ),
    "benchmark": Stage(
        "Score the fine-tuned model on the story world's questions; or any model on published benchmarks.",
        after="sft",
        sections=("benchmark",),
    ),
    "generate": Stage(
        "Let the model continue texts: your own prompts, or those of the settings.",
        after="pretrain",
        sections=("generate",),
    ),
}

NO_SOURCE = "none"  # as the source of a stage: there are no data for it

# The stages that leave a language model, and which of them each of these starts from where the settings name no other model.
MODEL_STAGES = ("pretrain", "sft", "dpo", "ppo", "grpo")
STARTS_FROM = {"sft": "pretrain", "reward": "sft", "dpo": "sft", "ppo": "sft", "grpo": "sft"}

# Settings that change how a run goes but not what comes out; a result stays current when they change.
WITHOUT_EFFECT = {"data.hub_cache"} | {
    f"{name}.{setting}"
    for name, stage in STAGES.items()
    if stage.resumable
    for setting in ("resume_from_checkpoint", "save_total_limit", "save_steps")
}


def left_out(settings: "Settings") -> dict[str, str]:
    """The stages that `run` does not do, each with the reason: they have no data, or need one that has none."""
    reasons: dict[str, str] = {}
    for name, stage in STAGES.items():
        if getattr(getattr(settings, name), "source", None) == NO_SOURCE and name != "data":
            reasons[name] = (
                f"no data, since the source is {NO_SOURCE}; name yours with --set STAGE.source=FILE"
            )
        elif stage.after in reasons:
            reasons[name] = f"{stage.after} comes before"
    return reasons


def marked_path(name: str | None) -> str | None:
    """The value of `--model`, in which an existing path that is called like a stage is written as a path: sft as ./sft."""
    return f"./{name}" if name is not None and is_stage_name(name) and Path(name).exists() else name


def is_stage_name(name: str | Path) -> bool:
    """Whether the name of a model means a stage of the run; a folder of that name is written ./sft."""
    return name in MODEL_STAGES


def upstream(stage: str) -> list[str]:
    """The stages that must be finished before this one, the first one first."""
    before = STAGES[stage].after
    return [*upstream(before), before] if before else []


def downstream(stage: str) -> list[str]:
    """The stages whose results rest on this one, in order."""
    return [name for name in STAGES if stage in upstream(name)]

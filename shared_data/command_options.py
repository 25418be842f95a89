"""The options that commands share, and what they open: a run folder with its settings.

run = open_folder("v2", config="smoke", overrides=["pretrain.max_steps=5"], out=None)
with working(run, "pretrain"):
    ...
"""

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shared_data.seeds import LARGEST_SEED
from shared_data.stages import marked_path

if TYPE_CHECKING:
    from shared_data.runs import RunFolder

# The words of the command that runs, after v1, v2 or v3.
typed_words: ContextVar[tuple[str, ...]] = ContextVar("typed_words", default=())

Config = Annotated[
    str | None,
    typer.Option(
        "--config",
        "-c",
        metavar="NAME|PATH",
        help="Configuration: smoke, tiny (the default), small, … or a .toml file of your own.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        metavar="KEY=VALUE",
        help="Change a setting, e.g. pretrain.max_steps=200. May be repeated.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="Folder of the run, if not runs/<level>/<config>. It remembers its settings.",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", min=0, max=LARGEST_SEED, metavar="N", help="Use this seed in every stage."),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device", metavar="NAME", help="auto, cpu, mps, cuda or cuda:N. Level 3 computes on the CPU only."
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="X",
        callback=marked_path,
        help="The model: a stage of the run (pretrain, sft, dpo, ppo, grpo), a folder with a Hugging Face model or adapter, a GGUF file, smollm2, or owner/name of the hub.",
    ),
]
Force = Annotated[
    bool, typer.Option("--force", help="Run again what has finished, even if nothing has changed.")
]


def open_folder(
    level: str,
    config: str | None,
    overrides: list[str] | None,
    out: Path | None,
    seed: int | None = None,
    device: str | None = None,
    force: bool = False,
    announce: bool = False,
) -> "RunFolder":
    """The run folder that the options describe, with its settings; `announce` names what they change of remembered ones."""
    from shared_data.remembered_settings import open_run

    run, changes = open_run(level, config, assignments_of(overrides, seed, device), out, force)
    limit_threads(run.settings.threads)
    if announce:
        for change in changes:
            print(change, flush=True)
    return run


def assignments_of(overrides: list[str] | None, seed: int | None, device: str | None) -> list[str]:
    """What these options change of the settings, as assignments of `--set`."""
    from shared_data.settings import seed_overrides

    assignments = list(overrides or [])
    if seed is not None:
        assignments += seed_overrides(seed)
    if device is not None:
        assignments.append(f'device="{device}"')
    return assignments


def limit_threads(threads: int) -> None:
    """Tell the libraries of mathematics, which read it when they are imported: that has not happened yet. 0 leaves them their choice."""
    if threads:
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
            os.environ[name] = str(threads)


@contextmanager
def working(run: "RunFolder", *words: str) -> Iterator[None]:
    """Hold the run while stages write into it; Ctrl-C names the command that goes on, with all options unless they are remembered."""
    with run.locked():
        try:
            yield
        except KeyboardInterrupt as stop:
            remembered = run.remembers_its_settings()
            command = run.command(*words) if remembered else shlex.join([run.level, *typed_words.get()])
            raise KeyboardInterrupt(f"`uv run {command}`") from stop


def do_stage(stage: str, stages: dict[str, str], run: "RunFolder", force: bool) -> None:
    from shared_data.pipeline import run_stage
    from shared_data.summary import print_next

    with working(run, stage):
        run_stage(stage, stages, run, force=force)
    print_next(run, stage)

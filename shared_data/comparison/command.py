"""The command `compare`: an ablation in one line. A tool, so of level 2 only; all but the training is here.

uv run v2 compare --config tiny --vary model.num_key_value_heads=1,2,4
"""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shared_data.command_options import (
    Config,
    Device,
    Overrides,
    Seed,
    assignments_of,
    limit_threads,
    typed_words,
)
from shared_data.errors import StageError, UserError
from shared_data.files import lock_folder
from shared_data.seeds import LARGEST_SEED

if TYPE_CHECKING:
    from shared_data.comparison.table import BytesPerToken
    from shared_data.comparison.trials import Trial

HELP = """Train several choices of settings alike, and compare them in one table and one plot.

Each choice is pretrained on the same text, with as many tokens and the same seed. The table shows bits per byte above the entropy floor, tokens per second, parameters, active parameters, and bytes per token in the key-value cache.

--vary KEY=VALUE,VALUE,… tries each value of a setting; several --vary try all combinations.

--choice "NAME: KEY=VALUE KEY=VALUE" names settings that change together. All --choice are alternatives to each other; with --vary, each is tried with each value.

What is trained with these settings is not trained again; after Ctrl-C or a kill the same command continues. Each choice has a run folder of its own, for look, evaluate, generate and report with --out.

Examples, after `uv run v2 compare`:

MHA, GQA, MQA: --vary model.num_key_value_heads=4,2,1

Optimizers: --vary pretrain.optim=adamw,muon --vary pretrain.learning_rate=1e-3,4e-3

Dense or mixture of experts: --choice dense: --choice "MoE: model.model_type=mixtral model.num_local_experts=8"

Patterns of attention: --set model.model_type=sparse_llama --set model.sliding_window=64 --vary 'model.layer_types=["full_attention"],["sliding_attention"]'
"""


def add_compare(app: typer.Typer, level: str, stages: dict[str, str], bytes_per_token: str) -> None:
    """stages: `module:function` by stage.  bytes_per_token: the same for the memory of a token in the cache, of a `ModelConfig`."""

    @app.command("compare", help=HELP, short_help=HELP.partition("\n")[0])
    def compare_command(
        config: Config = None,
        vary: Annotated[
            list[str] | None,
            typer.Option(
                "--vary", metavar="KEY=V,V,…", help="Try these values of a setting. May be repeated."
            ),
        ] = None,
        choice: Annotated[
            list[str] | None,
            typer.Option(
                "--choice", metavar="'NAME: KEY=V …'", help="Try these settings together. May be repeated."
            ),
        ] = None,
        seeds: Annotated[
            str | None,
            typer.Option(
                "--seeds", metavar="N,N,…", help="Train each choice with these seeds; shows mean and spread."
            ),
        ] = None,
        overrides: Overrides = None,
        out: Annotated[
            Path | None,
            typer.Option(
                "--out", metavar="DIR", help="Folder of the comparison, if not runs/<level>/<config>/compare."
            ),
        ] = None,
        seed: Seed = None,
        device: Device = None,
        force: Annotated[
            bool, typer.Option("--force", help="Train every choice again, even if nothing has changed.")
        ] = False,
    ) -> None:
        from shared_data.comparison.choices import read_choices

        choices = read_choices(vary or [], choice or [])
        config, assignments = config or "tiny", assignments_of(overrides, seed, device)
        settings = choices[0].settings(config, assignments)
        limit_threads(settings.threads)

        from shared_data.comparison.trials import plan
        from shared_data.pipeline import load_function
        from shared_data.runs import RunFolder

        root = out or RunFolder(level, settings).path / "compare"
        trials = plan(level, config, assignments, choices, _read_seeds(seeds), root)
        # Again, or after Ctrl-C: what has been forced once is made.
        again = f"uv run {shlex.join([level, *(word for word in typed_words.get() if word != '--force')])}"
        with lock_folder(root):
            try:
                _compare(trials, stages, load_function(bytes_per_token), root, force, again)
            except KeyboardInterrupt as stop:
                raise KeyboardInterrupt(f"`{again}`") from stop


def _compare(
    trials: "list[Trial]",
    stages: dict[str, str],
    bytes_per_token: "BytesPerToken",
    root: Path,
    force: bool,
    command: str,
) -> None:
    """Train them one after another; after each, bring table and plot up to date.

    A training that diverges or does not fit into memory keeps none of the others from being made; it is the error at the end.
    """
    from shared_data.comparison.table import NUMBERS, PLOT, TABLE, print_table, rows_of, write_comparison
    from shared_data.comparison.trials import train
    from shared_data.inference.sample_prompts import example_prompt
    from shared_data.summary import print_rows, print_title

    failures: dict[str, str] = {}
    for number, trial in enumerate(trials, start=1):
        print_title(f"compare {number}/{len(trials)}", trial.name)
        try:
            train(trial, stages, root, force)
        except StageError as error:
            failures[trial.name] = str(error)
            print_rows([("failed", str(error))])
        rows = rows_of(trials, bytes_per_token, failures)
        write_comparison(rows, root, title=trial.run.settings.name, command=command)
    print_title("compared", f"{len(rows)} choices")
    print_table(rows)
    files = (("table", TABLE), ("numbers", NUMBERS), ("plot", PLOT))
    look = trials[0].run.command("look", example_prompt(trials[0].run))
    print_rows([*((name, str(root / file)) for name, file in files), ("look inside one", f"uv run {look}")])
    for name, message in failures.items():
        raise UserError(f"{len(failures)} of {len(trials)} trainings failed; {name}: {message}")


def _read_seeds(text: str | None) -> list[int]:
    """The seeds of `--seeds 0,1,2`."""
    words = text.split(",") if text is not None else []
    seeds = [int(word) for word in words if word.strip().isdecimal() and int(word) <= LARGEST_SEED]
    if len(seeds) < len(words) or len(set(seeds)) < len(seeds):
        raise UserError(
            f"--seeds {text!r} are not different whole numbers from 0 to {LARGEST_SEED}; write for example --seeds 0,1,2"
        )
    return seeds

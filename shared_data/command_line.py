"""The command line that every level shares: the same commands and options, which differ in their stage functions only.

Nothing heavy is imported before a command runs (`--help` answers in a fraction of a second): stage functions are named as
`module:function` and imported when they are called. What a user does wrong is one line on stderr (`errors.py`).

    app = build_app("v2", "Every algorithm by hand, in PyTorch.", stages={"data": "v2_handwritten.data_pipeline.prepare:prepare_documents"})
"""

import json
import platform
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import Exit, TyperException

from shared_data.benchmarks.command import add_benchmark
from shared_data.command_options import (
    Config,
    Device,
    Force,
    Model,
    Out,
    Overrides,
    Seed,
    do_stage,
    open_folder,
    typed_words,
    working,
)
from shared_data.errors import EXIT_CODE, UserError, ignore_interrupts, one_line_errors
from shared_data.model_commands import add_chat, add_evaluate, add_export, add_generate
from shared_data.quantization.cli import add_quantize
from shared_data.stages import STAGES, is_stage_name


class _Group(TyperGroup):
    """The commands of a level; every mistake in calling them is one line, as any other mistake of the user's."""

    def main(
        self, args: Sequence[str] | None = None, prog_name: str | None = None, *_: Any, **extra: Any
    ) -> Any:
        """Run a command line and leave the process with its exit code."""
        with one_line_errors():
            code = self._call(list(sys.argv[1:] if args is None else args))
            sys.stdout.flush()  # here, where it is still caught that the reader has gone away
            ignore_interrupts()
        sys.exit(code)

    def _call(self, words: list[str]) -> int:
        try:
            typed_words.set(tuple(words))
            with self.make_context(f"uv run {self.name}", words) as context:
                self.invoke(context)
        except Exit as leave:  # after --help
            return leave.exit_code
        except TyperException as error:
            message = error.format_message().rstrip(".")
            if not message:  # called without any word: the help has been shown
                return EXIT_CODE
            context_of_error = getattr(error, "ctx", None)
            where = context_of_error.command_path if context_of_error else f"uv run {self.name}"
            if getattr(error, "option_name", None) in ("--checkpoint", "--stage"):
                message += ", use --model"
            raise UserError(f"{message}; see `{where} --help`") from error
        return 0


def build_app(level: str, summary: str, stages: dict[str, str]) -> typer.Typer:
    """The commands of one level.

    level: v1, v2 or v3.  summary: one line for `--help`.
    stages: `module:function` by stage, the function being `(settings, run) -> numbers`.
    """
    app = typer.Typer(
        name=level,
        help=summary,
        cls=_Group,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    _add_version(app)
    _add_run(app, level, stages)
    for stage in STAGES:
        if stage == "generate" and stage in stages:
            add_generate(app, level, stages)
        elif stage == "evaluate" and stage in stages:
            add_evaluate(app, level, stages)
        elif stage == "benchmark" and stage in stages:
            add_benchmark(app, level, stages)
        elif stage in stages and STAGES[stage].resumable:
            _add_training(app, level, stage, stages)
        elif stage in stages:
            _add_stage(app, level, stage, stages)
    if "sft" in stages:
        add_chat(app, level, stages["sft"].partition(".")[0])
        add_quantize(app, level, stages["sft"].partition(".")[0])
    add_export(app, level)
    _add_report(app, level)
    _add_settings(app)
    return app


def _add_run(app: typer.Typer, level: str, stages: dict[str, str]) -> None:
    @app.command(
        "run",
        help="Run every stage, from the corpus to the generated text, and write the report. What has not changed is kept.",
    )
    def run_command(
        config: Config = None,
        overrides: Overrides = None,
        out: Out = None,
        seed: Seed = None,
        device: Device = None,
        first: Annotated[
            str | None,
            typer.Option("--from", metavar="STAGE", help="Run this stage and all later ones again."),
        ] = None,
        only: Annotated[
            str | None, typer.Option("--only", metavar="STAGE", help="Run this stage and no other.")
        ] = None,
        force: Force = False,
    ) -> None:
        from shared_data.pipeline import run_pipeline
        from shared_data.report import write_report
        from shared_data.summary import print_finished

        run = open_folder(level, config, overrides, out, seed, device, force, announce=True)
        with working(run, "run"):
            run_pipeline(stages, run, first=first, only=only, force=force)
            print_finished(run, write_report(run))


def _add_stage(app: typer.Typer, level: str, stage: str, stages: dict[str, str]) -> None:
    @app.command(stage, help=STAGES[stage].summary)
    def stage_command(
        config: Config = None,
        overrides: Overrides = None,
        out: Out = None,
        seed: Seed = None,
        device: Device = None,
        force: Force = False,
    ) -> None:
        run = open_folder(level, config, overrides, out, seed, device, force, announce=True)
        do_stage(stage, stages, run, force)


def _add_training(app: typer.Typer, level: str, stage: str, stages: dict[str, str]) -> None:
    """The same of a stage that can start from any model."""

    @app.command(stage, help=STAGES[stage].summary)
    def training_command(
        config: Config = None,
        overrides: Overrides = None,
        out: Out = None,
        seed: Seed = None,
        device: Device = None,
        force: Force = False,
        model: Model = None,
    ) -> None:
        assignments = list(overrides or [])
        if model is not None:  # quoted, since a name such as 7 would be read as a number
            path = Path(model).expanduser()  # whole, since the next command may be given elsewhere
            is_path = path.exists() and not is_stage_name(model)
            named = str(path.resolve()) if is_path else model
            assignments.append(f"{stage}.model_name_or_path={json.dumps(named, ensure_ascii=False)}")
        run = open_folder(level, config, assignments, out, seed, device, force, announce=True)
        do_stage(stage, stages, run, force)


def _add_report(app: typer.Typer, level: str) -> None:
    @app.command("report", help="Write the report of a run: one HTML page that opens offline.")
    def report_command(
        config: Config = None,
        overrides: Overrides = None,
        out: Out = None,
        compare: Annotated[
            list[str] | None,
            typer.Option(
                "--compare",
                metavar="LEVEL…",
                help="Show other levels' runs of the same configuration beside it: --compare v1 v3.",
            ),
        ] = None,
        others: Annotated[
            list[str] | None, typer.Argument(hidden=True, help="More levels to compare with.")
        ] = None,
    ) -> None:
        from shared_data.report import write_report

        if others and not compare:
            raise UserError(f"report takes no argument {others[0]!r}; write --compare {others[0]}")
        run = open_folder(level, config, overrides, out)
        print(f"report: {write_report(run, [*(compare or []), *(others or [])])}")


def _add_settings(app: typer.Typer) -> None:
    @app.command(
        "settings", help="Show every setting with its value and its meaning, as a configuration file."
    )
    def settings_command(config: Config = None, overrides: Overrides = None, out: Out = None) -> None:
        from shared_data.remembered_settings import open_run
        from shared_data.settings import load_settings, settings_to_toml

        settings = (
            open_run("v2", config, overrides, out)[0].settings
            if out
            else load_settings(config or "tiny", overrides)
        )
        print(settings_to_toml(settings, documented=True), end="")


def _add_version(app: typer.Typer) -> None:
    def show(wanted: bool) -> None:
        if wanted:
            installed = [f"Python {platform.python_version()}"]
            for name in ("llm-from-scratch", "numpy", "torch", "transformers", "trl"):
                with suppress(metadata.PackageNotFoundError):
                    installed.append(f"{name} {metadata.version(name)}")
            print("\n".join(installed))
            raise Exit

    @app.callback()
    def options(
        version: Annotated[
            bool,
            typer.Option(
                "--version", callback=show, is_eager=True, help="Show the versions of what is installed."
            ),
        ] = False,
    ) -> None:
        pass

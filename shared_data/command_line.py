"""The command line that every level shares: the same commands and options, told apart only by the stage functions.

Nothing heavy is imported before a command runs (`--help` answers in a fraction of a second): stage functions are named as
`module:function` and imported when they are called. What a user does wrong is one line on stderr (`errors.py`).

    app = build_app("v2", "Every algorithm by hand, in PyTorch.", stages={"data": "v2_handwritten.data_pipeline.prepare:prepare_documents"})
"""

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import Exit, TyperException

from shared_data.errors import EXIT_CODE, UserError, one_line_errors
from shared_data.stages import STAGES

if TYPE_CHECKING:
    from shared_data.runs import RunFolder
    from shared_data.settings import Settings

Config = Annotated[
    str,
    typer.Option(
        "--config", "-c", metavar="NAME|PATH", help="Configuration: smoke, tiny, small, … or a .toml file."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-s", metavar="KEY=VALUE", help="Change a setting, e.g. pretrain.steps=200. May be repeated."
    ),
]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Run folder instead of runs/<level>/<config>.")
]
Seed = Annotated[int | None, typer.Option("--seed", min=0, metavar="N", help="Use this seed in every stage.")]
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N (level 3: the CPU only)."),
]
Force = Annotated[bool, typer.Option("--force", help="Do it again even if nothing has changed.")]


class _Group(TyperGroup):
    """The commands of a level; every mistake in calling them is one line, as any other mistake of the user's."""

    def main(
        self, args: Sequence[str] | None = None, prog_name: str | None = None, *_: Any, **extra: Any
    ) -> Any:
        """Run a command line and leave the process with its exit code."""
        with one_line_errors():
            code = self._call(list(sys.argv[1:] if args is None else args))
            sys.stdout.flush()  # here, where it is still caught that the reader has gone away
        sys.exit(code)

    def _call(self, words: list[str]) -> int:
        try:
            with self.make_context(self.name, words) as context:
                self.invoke(context)
        except Exit as leave:  # after --help
            return leave.exit_code
        except TyperException as error:
            message = error.format_message().rstrip(".")
            if not message:  # called without any word: the help has been shown
                return EXIT_CODE
            context_of_error = getattr(error, "ctx", None)
            where = context_of_error.command_path if context_of_error else self.name
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
    _add_run(app, level, stages)
    for stage in STAGES:
        if stage == "generate" and stage in stages:
            _add_generate(app, level, stages)
        elif stage in stages:
            _add_stage(app, level, stage, stages)
    if "sft" in stages:
        _add_chat(app, level, stages["sft"].partition(".")[0])
    _add_report(app, level)
    _add_settings(app)
    return app


def _open(
    level: str,
    config: str,
    overrides: list[str] | None,
    out: Path | None,
    seed: int | None,
    device: str | None,
) -> "tuple[Settings, RunFolder]":
    """The settings that the options describe, and the run folder."""
    from shared_data.runs import RunFolder
    from shared_data.settings import load_settings, seed_overrides

    assignments = list(overrides or [])
    if seed is not None:
        assignments += seed_overrides(seed)
    if device is not None:
        assignments.append(f'device="{device}"')
    settings = load_settings(config, assignments)
    if (
        settings.threads
    ):  # read by the libraries of mathematics when they are imported, which has not happened yet
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
            os.environ[name] = str(settings.threads)
    return settings, RunFolder(level, settings, out)


def _repeated(
    config: str,
    out: Path | None,
    overrides: list[str] | None = None,
    seed: int | None = None,
    device: str | None = None,
) -> str:
    """The options of this command as the next one needs them."""
    words = ["--config", config] if config != "tiny" else []
    words += ["--out", str(out)] if out else []
    for assignment in overrides or []:
        words += ["--set", assignment]
    words += ["--seed", str(seed)] if seed is not None else []
    words += ["--device", device] if device else []
    return "".join(f" {shlex.quote(word)}" for word in words)


def _add_run(app: typer.Typer, level: str, stages: dict[str, str]) -> None:
    @app.command("run", help="Run all stages, skipping those whose inputs have not changed.")
    def run_command(
        config: Config = "tiny",
        overrides: Overrides = None,
        out: Out = None,
        seed: Seed = None,
        device: Device = None,
        first: Annotated[
            str | None, typer.Option("--from", metavar="STAGE", help="Do this stage and all after it again.")
        ] = None,
        only: Annotated[
            str | None, typer.Option("--only", metavar="STAGE", help="Do this stage and no other.")
        ] = None,
        force: Force = False,
    ) -> None:
        from shared_data.pipeline import run_pipeline
        from shared_data.report import write_report
        from shared_data.summary import print_finished

        settings, run = _open(level, config, overrides, out, seed, device)
        with run.locked():
            run_pipeline(stages, settings, run, first=first, only=only, force=force)
            print_finished(run, write_report(run), _repeated(config, out))


def _add_stage(app: typer.Typer, level: str, stage: str, stages: dict[str, str]) -> None:
    @app.command(stage, help=STAGES[stage].summary)
    def stage_command(
        config: Config = "tiny",
        overrides: Overrides = None,
        out: Out = None,
        seed: Seed = None,
        device: Device = None,
        force: Force = False,
    ) -> None:
        from shared_data.pipeline import run_stage
        from shared_data.summary import print_next

        settings, run = _open(level, config, overrides, out, seed, device)
        with run.locked():
            run_stage(stage, stages, settings, run, force=force)
        print_next(run, stage, _repeated(config, out, overrides, seed, device))


def _add_generate(app: typer.Typer, level: str, stages: dict[str, str]) -> None:
    module = stages["generate"].partition(":")[0]

    @app.command("generate", help=STAGES["generate"].summary)
    def generate_command(
        config: Config = "tiny",
        overrides: Overrides = None,
        out: Out = None,
        device: Device = None,
        prompt: Annotated[
            list[str] | None, typer.Option("--prompt", "-p", help="Text to continue. May be repeated.")
        ] = None,
        checkpoint: Annotated[
            Path | None,
            typer.Option(
                "--checkpoint", metavar="FOLDER", help="Hugging Face folder instead of this run's model."
            ),
        ] = None,
        temperature: Annotated[
            float | None, typer.Option("--temperature", "-t", help="0 takes the most probable token.")
        ] = None,
        top_k: Annotated[int | None, typer.Option("--top-k", help="Keep the K most probable tokens.")] = None,
        top_p: Annotated[
            float | None, typer.Option("--top-p", help="Keep the fewest tokens of this much probability.")
        ] = None,
        max_new_tokens: Annotated[
            int | None, typer.Option("--max-new-tokens", "-n", help="Stop after so many tokens.")
        ] = None,
        seed: Annotated[
            int | None, typer.Option("--seed", min=0, metavar="N", help="Seed of the sampler.")
        ] = None,
        stream: Annotated[
            bool, typer.Option("--stream/--no-stream", help="Write each token at once, or all at the end.")
        ] = True,
        no_cache: Annotated[
            bool, typer.Option("--no-cache", help="Recompute the whole text for each token (slow).")
        ] = False,
    ) -> None:
        from shared_data.pipeline import load_function

        options = {
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "max_new_tokens": max_new_tokens,
            "seed": seed,
        }
        chosen = [f"generate.{name}={value}" for name, value in options.items() if value is not None]
        settings, run = _open(level, config, [*(overrides or []), *chosen], out, None, device)
        if checkpoint is None and not (run.path / "pretrain" / "config.json").is_file():
            raise UserError(
                f"no model in {run.path / 'pretrain'}; run `{level} run` first, or name one with --checkpoint FOLDER"
            )
        written: list[str] = []
        write = _write_at_once if stream else written.append
        load_function(f"{module}:generate_command")(
            settings, run, prompt or settings.generate.prompts, checkpoint, not no_cache, write
        )
        _write_at_once("".join(written))


def _add_chat(app: typer.Typer, level: str, package: str) -> None:
    @app.command("chat", help="Talk with the tuned model; /reset, /system TEXT and /quit are obeyed.")
    def chat_command(
        config: Config = "tiny",
        overrides: Overrides = None,
        out: Out = None,
        device: Device = None,
        stage: Annotated[
            str, typer.Option("--stage", metavar="STAGE", help="Whose model: sft, dpo, ppo, grpo, pretrain.")
        ] = "sft",
        checkpoint: Annotated[
            Path | None,
            typer.Option(
                "--checkpoint", metavar="FOLDER", help="Hugging Face folder instead of this run's model."
            ),
        ] = None,
        temperature: Annotated[
            float | None, typer.Option("--temperature", "-t", help="0 takes the most probable token.")
        ] = None,
        seed: Annotated[
            int | None, typer.Option("--seed", min=0, metavar="N", help="Seed of the sampler.")
        ] = None,
    ) -> None:
        from shared_data.pipeline import load_function

        options = {"temperature": temperature, "seed": seed}
        chosen = [f"generate.{name}={value}" for name, value in options.items() if value is not None]
        settings, run = _open(level, config, [*(overrides or []), *chosen], out, None, device)
        if checkpoint is None and stage == "reward":
            raise UserError("a reward model scores and does not write; choose --stage sft, dpo, ppo or grpo")
        if checkpoint is None and not (run.path / stage / "config.json").is_file():
            raise UserError(
                f"no model in {run.path / stage}; run `{level} run` first, or name one with --checkpoint FOLDER"
            )
        load_function(f"{package}.inference.chat:chat_command")(
            settings, run, checkpoint or run.path / stage, _typed_lines(), _write_at_once
        )


def _typed_lines() -> Iterator[str]:
    """What the user types, line by line, after a prompt where there is a terminal; ends with the input."""
    terminal = sys.stdin.isatty()
    while True:
        if terminal:
            _write_at_once("> ")
        line = sys.stdin.readline()
        if not line:
            return
        yield line


def _write_at_once(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _add_report(app: typer.Typer, level: str) -> None:
    @app.command("report", help="Write the story of a run as one HTML page that opens offline.")
    def report_command(
        config: Config = "tiny",
        overrides: Overrides = None,
        out: Out = None,
        compare: Annotated[
            list[str] | None,
            typer.Option(
                "--compare",
                metavar="LEVEL…",
                help="Lay the runs of these levels with the same config beside: --compare v1 v3.",
            ),
        ] = None,
        others: Annotated[
            list[str] | None, typer.Argument(hidden=True, help="More levels to compare with.")
        ] = None,
    ) -> None:
        from shared_data.report import write_report

        if others and not compare:
            raise UserError(f"report takes no argument {others[0]!r}; write --compare {others[0]}")
        _, run = _open(level, config, overrides, out, None, None)
        print(f"report: {write_report(run, [*(compare or []), *(others or [])])}")


def _add_settings(app: typer.Typer) -> None:
    @app.command("settings", help="Show every setting, its value and what it means, as a configuration file.")
    def settings_command(config: Config = "tiny", overrides: Overrides = None) -> None:
        from shared_data.settings import load_settings, settings_to_toml

        print(settings_to_toml(load_settings(config, overrides), documented=True), end="")

"""The commands that use a model: `evaluate`, `generate`, `chat`, `export` and, of level 2 only, `look`, each with `--model`.

uv run v2 generate --model sft --prompt "Once upon a time"
uv run v2 chat --model ./my_model
uv run v2 evaluate --model dpo
uv run v2 export --model sft --type q8_0 --out sft.gguf
uv run v2 look "Once upon a time" --model sft
"""

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

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
)
from shared_data.errors import UserError
from shared_data.inference.options import (
    MaxNewTokens,
    MinP,
    NumBeams,
    RepetitionPenalty,
    SamplerSeed,
    Stop,
    Temperature,
    TopK,
    TopP,
    chosen_settings,
    follow_generation_config,
)
from shared_data.stages import STAGES

CHAT_HELP = '''Talk with the tuned model.

/reset forgets the conversation, /system TEXT sets the system message, /quit or Ctrl-D leaves, Ctrl-C stops an answer.

A message of several lines is pasted, or written between """ and """. Where the input is not a terminal, each line is a message.'''


def add_evaluate(app: typer.Typer, level: str, stages: dict[str, str]) -> None:
    @app.command("evaluate", help=STAGES["evaluate"].summary)
    def evaluate_command(
        config: Config = None,
        overrides: Overrides = None,
        out: Out = None,
        seed: Seed = None,
        device: Device = None,
        force: Force = False,
        model: Model = None,
    ) -> None:
        run = open_folder(level, config, overrides, out, seed, device, force, announce=True)
        if model is None:
            do_stage("evaluate", stages, run, force)
            return
        from shared_data.needs import check_needs
        from shared_data.pipeline import load_function
        from shared_data.summary import print_rows, summary_rows

        run.require("pretrain")  # the held-out text
        check_needs(run, ["evaluate"])
        print_rows(summary_rows("evaluate", load_function(stages["evaluate"])(run.settings, run, model)))


GENERATE_HELP = f"""{STAGES["generate"].summary}

All sampling settings are keys of the section generate, such as generate.typical_p=0.9, generate.presence_penalty=0.5, generate.no_repeat_ngram_size=3 or
generate.length_penalty=0.8; the command settings explains them."""


def add_generate(app: typer.Typer, level: str, stages: dict[str, str]) -> None:
    module = stages["generate"].partition(":")[0]

    @app.command("generate", help=GENERATE_HELP, short_help=STAGES["generate"].summary)
    def generate_command(
        config: Config = None,
        overrides: Overrides = None,
        out: Out = None,
        device: Device = None,
        prompt: Annotated[
            list[str] | None,
            typer.Option("--prompt", "-p", metavar="TEXT", help="Text to continue. May be repeated."),
        ] = None,
        model: Model = None,
        temperature: Temperature = None,
        top_k: TopK = None,
        top_p: TopP = None,
        min_p: MinP = None,
        repetition_penalty: RepetitionPenalty = None,
        num_beams: NumBeams = None,
        stop: Stop = None,
        max_new_tokens: MaxNewTokens = None,
        seed: SamplerSeed = None,
        stream: Annotated[
            bool,
            typer.Option(
                "--stream/--no-stream", help="Write each token at once, or the whole text at its end."
            ),
        ] = True,
        no_cache: Annotated[
            bool,
            typer.Option(
                "--no-cache",
                help="Compute the whole text again for each token, without the key-value cache: slow.",
            ),
        ] = False,
    ) -> None:
        from shared_data.inference.sample_prompts import sample_prompts
        from shared_data.pipeline import load_function

        chosen = chosen_settings(
            overrides,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            num_beams=num_beams,
            stop_strings=stop,
            max_new_tokens=max_new_tokens,
            seed=seed,
        )
        run = open_folder(level, config, chosen, out, device=device)
        name = model or "pretrain"
        follow_generation_config(run, name, chosen)
        written: list[str] = []
        write = _write_at_once if stream else written.append
        load_function(f"{module}:generate_command")(
            run.settings,
            run,
            prompt or sample_prompts(run.settings, run),
            name,
            not no_cache,
            write,
        )
        _write_at_once("".join(written))


def add_chat(app: typer.Typer, level: str, package: str) -> None:
    @app.command("chat", help=CHAT_HELP, short_help=CHAT_HELP.partition("\n")[0])
    def chat_command(
        config: Config = None,
        overrides: Overrides = None,
        out: Out = None,
        device: Device = None,
        model: Model = None,
        temperature: Temperature = None,
        top_k: TopK = None,
        top_p: TopP = None,
        min_p: MinP = None,
        repetition_penalty: RepetitionPenalty = None,
        num_beams: NumBeams = None,
        stop: Stop = None,
        max_new_tokens: MaxNewTokens = None,
        seed: SamplerSeed = None,
    ) -> None:
        from shared_data.inference.typed import typed_messages
        from shared_data.inference.welcome import print_welcome
        from shared_data.pipeline import load_function

        chosen = chosen_settings(
            overrides,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            num_beams=num_beams,
            stop_strings=stop,
            max_new_tokens=max_new_tokens,
            seed=seed,
        )
        run = open_folder(level, config, chosen, out, device=device)
        name = model or "sft"
        follow_generation_config(run, name, chosen)
        # The first is read when the model is loaded.
        user_messages = typed_messages(lambda: print_welcome(run, name))
        load_function(f"{package}.inference.chat:chat_command")(
            run.settings, run, name, user_messages, _write_at_once
        )


def add_export(app: typer.Typer, level: str) -> None:
    @app.command("export", help="Write a model as one GGUF file, for llama.cpp and programs built on it.")
    def export_command(
        out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The file to write: NAME.gguf.")],
        config: Config = None,
        overrides: Overrides = None,
        model: Model = None,
        type_name: Annotated[
            str,
            typer.Option("--type", metavar="TYPE", help="What matrices are stored as: f32, f16 or q8_0."),
        ] = "f16",
        force: Annotated[bool, typer.Option("--force", help="Replace a file that is there already.")] = False,
    ) -> None:
        from shared_data.model_files.gguf_export import export_gguf
        from shared_data.model_names import find_model
        from shared_data.summary import print_rows

        run = open_folder(level, config, overrides, None)
        folder, tokenizer_folder = find_model(run, model or "sft")
        export_gguf(folder, tokenizer_folder, out, type_name, force)
        print_rows([("model", str(out)), ("size", f"{out.stat().st_size / 1e6:,.1f} MB")])


def add_look(app: typer.Typer, level: str, function: str, patterns_function: str) -> None:
    @app.command("look", help="Look inside a model: its tokens, next-token probabilities and attention maps.")
    def look_command(
        text: Annotated[
            str | None, typer.Argument(metavar="TEXT", help="A sentence.", show_default=False)
        ] = None,
        config: Config = None,
        overrides: Overrides = None,
        out: Out = None,
        device: Device = None,
        model: Model = None,
        layer: Annotated[
            int | None, typer.Option("--layer", metavar="N", help="This layer only; the first is 0.")
        ] = None,
        head: Annotated[
            int | None, typer.Option("--head", metavar="N", help="This head only; the first is 0.")
        ] = None,
        svg: Annotated[
            Path | None,
            typer.Option(
                "--svg", metavar="FILE", help="Draw the maps into this file instead of the run's look/."
            ),
        ] = None,
        patterns: Annotated[
            bool,
            typer.Option(
                "--patterns",
                help="Instead of a text: how often the attention of a layer sees the answer of a question.",
            ),
        ] = False,
    ) -> None:
        from shared_data.pipeline import load_function
        from shared_data.summary import print_rows

        if patterns:
            if text is not None:
                raise UserError("--patterns takes no text; its questions are those of the story world")
            run = open_folder(level, config, overrides, out, device=device)
            load_function(patterns_function)(run.settings, run, model)
            return
        if text is None:
            raise UserError(f"Missing argument 'TEXT'; see `uv run {level} look --help`")
        if not text:
            raise UserError("the text is empty; pass a sentence in quotes")
        if svg and svg.suffix != ".svg":
            raise UserError(f"{svg} is no name of an SVG file; let it end in .svg")
        run = open_folder(level, config, overrides, out, device=device)
        name = model or "pretrain"
        words = "-".join(re.findall(r"\w+", f"{Path(name).name} {text}"))[:60]
        chosen = [f"-{kind}-{n}" for kind, n in (("layer", layer), ("head", head)) if n is not None]
        picture = svg or run.path / "look" / f"{words}{''.join(chosen)}.svg"
        load_function(function)(run.settings, run, text, name, layer, head, picture)
        print()
        print_rows([("picture", str(picture))])


def _write_at_once(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()

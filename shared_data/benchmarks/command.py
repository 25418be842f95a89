"""The command `benchmark`: without options the stage of the run, with them any model on any benchmarks.

uv run v2 benchmark --model smollm2 --tasks arc_easy,hellaswag --limit 100 --json scores.json
uv run v2 benchmark --model sft --tasks mmlu --data mmlu=~/mmlu --num-fewshot 5 --items items.jsonl
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from shared_data.command_options import Config, Device, Force, Model, Out, Overrides, do_stage, open_folder
from shared_data.seeds import LARGEST_SEED
from shared_data.stages import STAGES

HELP = f"""{STAGES["benchmark"].summary}

Called alone it is the stage of the run: the tasks of the section benchmark in its settings. A model, tasks or files make it an evaluation of its own, of
the model of sft unless another one is named. Tasks have their data on the Hugging Face hub, or in files of the format in which they are published."""
# What a call with --model or --tasks does unless it says otherwise, as lm-evaluation-harness does.
_DEFAULTS = ["benchmark.limit=none", "benchmark.apply_chat_template=false"]

Tasks = Annotated[
    str | None,
    typer.Option(
        "--tasks", metavar="A,B", help="Benchmarks by lm-evaluation-harness's names: arc_easy,mmlu,…"
    ),
]
Limit = Annotated[
    int | None, typer.Option("--limit", min=1, metavar="N", help="The first N items of each task.")
]
Shots = Annotated[
    int | None,
    typer.Option(
        "--num-fewshot",
        min=0,
        metavar="K",
        help="Examples before each item of every task; default the task's own: 5 for gsm8k, else 0.",
    ),
]
Items = Annotated[
    Path | None,
    typer.Option(
        "--items",
        metavar="FILE",
        help="Write a line of JSON for each item. Levels 2 and 3: killed and called again, it goes on from there.",
    ),
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="TASK=PATH",
        help="A task's files: one file, or a folder of its splits. May be repeated.",
    ),
]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the scores.")]
FewShotSeed = Annotated[
    int | None,
    typer.Option("--seed", min=0, max=LARGEST_SEED, metavar="N", help="Seed of the choice of examples."),
]
Template = Annotated[
    bool, typer.Option("--apply-chat-template", help="Put each item to the model in its chat template.")
]


def add_benchmark(app: typer.Typer, level: str, stages: dict[str, str]) -> None:
    """Add the command to the commands of a level."""

    @app.command("benchmark", help=HELP, short_help=STAGES["benchmark"].summary)
    def benchmark_command(
        config: Config = None,
        overrides: Overrides = None,
        out: Out = None,
        device: Device = None,
        force: Force = False,
        model: Model = None,
        tasks: Tasks = None,
        limit: Limit = None,
        num_fewshot: Shots = None,
        items: Items = None,
        data: Data = None,
        json_file: Json = None,
        seed: FewShotSeed = None,
        apply_chat_template: Template = False,
    ) -> None:
        options = {"limit": limit, "num_fewshot": num_fewshot, "seed": seed}
        chosen = [f"benchmark.{name}={value}" for name, value in options.items() if value is not None]
        if tasks is None and data:  # the tasks whose data are named
            tasks = ",".join(assignment.partition("=")[0] for assignment in data)
        if tasks is not None:
            names = [name.strip() for name in tasks.split(",") if name.strip()]
            chosen.append(f"benchmark.tasks={json.dumps(names, ensure_ascii=False)}")
        if apply_chat_template:
            chosen.append("benchmark.apply_chat_template=true")
        if not (model or tasks or items or data or json_file):
            run = open_folder(level, config, [*(overrides or []), *chosen], out, device=device, announce=True)
            do_stage("benchmark", stages, run, force)
            return
        from shared_data.benchmarks.evaluation import Files
        from shared_data.needs import check_needs
        from shared_data.pipeline import load_function
        from shared_data.summary import print_rows, summary_rows

        run = open_folder(level, config, [*_DEFAULTS, *(overrides or []), *chosen], out, device=device)
        check_needs(run, ["benchmark"])
        files = Files(tuple(data or ()), items, json_file, force)
        scores = load_function(stages["benchmark"])(run.settings, run, model or "sft", files)
        print_rows(summary_rows("benchmark", scores))

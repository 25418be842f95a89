"""The options of `generate` and `chat` that say how tokens are chosen; the other settings of `[generate]` go through `--set`.

uv run v2 generate --prompt "Once upon a time" --min-p 0.1 --stop "The end"
"""

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared_data.seeds import LARGEST_SEED

if TYPE_CHECKING:
    from shared_data.runs import RunFolder

Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        "-t",
        metavar="T",
        help="How random the text is; 0 always takes the most probable token.",
    ),
]
TopK = Annotated[
    int | None,
    typer.Option("--top-k", metavar="K", help="Choose among the K most probable tokens only."),
]
TopP = Annotated[
    float | None,
    typer.Option(
        "--top-p",
        metavar="P",
        help="Choose among the fewest tokens that have probability P together.",
    ),
]
MinP = Annotated[
    float | None,
    typer.Option(
        "--min-p", metavar="P", help="Choose among tokens at least P times as probable as the best one."
    ),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(
        "--repetition-penalty", metavar="X", help="Above 1, tokens of the text so far are less probable."
    ),
]
NumBeams = Annotated[
    int | None,
    typer.Option(
        "--num-beams",
        metavar="N",
        help="Search with N beams, without drawing: the temperature is then 0. Nothing is streamed.",
    ),
]
Stop = Annotated[
    list[str] | None,
    typer.Option("--stop", metavar="TEXT", help="Stop before this text. May be repeated."),
]
MaxNewTokens = Annotated[
    int | None, typer.Option("--max-new-tokens", "-n", metavar="N", help="Write at most N tokens.")
]
SamplerSeed = Annotated[
    int | None,
    typer.Option("--seed", min=0, max=LARGEST_SEED, metavar="N", help="Seed of the random choice of tokens."),
]


def chosen_settings(overrides: list[str] | None, **options: Any) -> list[str]:
    """What the user has chosen of `[generate]`, as assignments: `--set`, then the options. Beams leave nothing to a temperature."""
    given = {name: value for name, value in options.items() if value is not None}
    draws = any(assignment.startswith("generate.temperature") for assignment in overrides or [])
    if given.get("num_beams", 1) > 1 and not draws:
        given = {"temperature": 0} | given
    chosen = [f"generate.{name}={json.dumps(value)}" for name, value in given.items()]
    return [*(overrides or []), *chosen]


def follow_generation_config(run: "RunFolder", name: str, chosen: list[str]) -> None:
    """Sample as the model's own files ask, but for what the user has chosen."""
    from shared_data.inference.generation_config import sample_as_asked

    if asked := sample_as_asked(run, name, chosen):
        print(f"[the model asks for {', '.join(asked)}, which is not computed]", file=sys.stderr)

"""The first lines of `chat` in a terminal: which model answers, what it can do, and something to ask it.

print_welcome(run, "sft")
"""

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from shared_data.errors import UserError
from shared_data.inference.sample_prompts import example_prompt
from shared_data.inference.typed import BLOCK
from shared_data.model_names import MODEL_STAGES, resolve_model
from shared_data.run_writing import SETTINGS
from shared_data.runs import RunFolder
from shared_data.settings import load_settings

STORIES = 50  # the shortest of so many held-out ones is shown
# Of the two questions: one that a sentence answers, one for which the story must be followed.
KINDS = ("place", "holder")

_COMMANDS = (
    "/reset forgets the conversation · /system TEXT sets the system message · /quit or Ctrl-D leaves · Ctrl-C stops an answer\n"
    f"A message of several lines: paste it, or write {BLOCK} before and after it."
)


def print_welcome(run: RunFolder, name: str | Path) -> None:
    """Print the lines; the parts that are meant to be pasted stand on lines of their own, without an indent."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    for text, is_example in welcome(run, name):
        # Wrapped text would be pasted wrapped.
        console.print(Text(text, "cyan" if is_example else ""), soft_wrap=True)


def welcome(run: RunFolder, name: str | Path) -> Iterator[tuple[str, bool]]:
    """(text, whether it can be pasted as it is), from what the run of the model says about it."""
    folder = resolve_model(run, name)
    made_by = _run_of(run, folder)
    if made_by is None:
        yield f"{folder} is loaded.", False
    elif folder.name == "pretrain":
        yield f"{folder} is loaded. It continues text; it has not been tuned to answer.", False
        prompt = made_by.command("generate", "--prompt", example_prompt(made_by))
        yield f"To see it continue a text, leave and use: uv run {prompt}", False
    elif made_by.settings.sft.source != "story_world":
        yield (
            f"{folder} is loaded. It was tuned on the conversations of {made_by.settings.sft.source}.",
            False,
        )
    else:
        yield (
            f"{folder} is loaded. It was tuned to answer questions about a short story, and knows only such stories. Paste a "
            f"story first, then ask.{_accuracy(made_by, folder.name)} Paste this, for example:\n",
            False,
        )
        story, first, second = example()
        yield f"{story}\nQuestion: {first}", True
        yield "\nThen ask more about the same story:\n", False
        yield f"Question: {second}", True
        yield "\nUse /reset before you paste another story.", False
    yield _COMMANDS, False


def _run_of(run: RunFolder, folder: Path) -> RunFolder | None:
    """The run in which a folder is the model of a stage; None where it lies in no run of this version."""
    if folder.name not in MODEL_STAGES or not (folder.parent / SETTINGS).is_file():
        return None
    try:
        return RunFolder(run.level, load_settings(folder.parent / SETTINGS), folder.parent)
    except UserError:
        return None


def _accuracy(run: RunFolder, stage: str) -> str:
    """How often it was right, where that has been measured."""
    metrics = run.metrics().get(stage, {})
    share = metrics.get("qa_accuracy", metrics.get("right_after"))
    return "" if share is None else f" It answered {share:.1%} of the held-out questions right."


def example() -> tuple[str, str, str]:
    """A story that no training has seen, and two questions about it."""
    from shared_data.story_world import StoryWorld
    from shared_data.story_world.questions import question_about

    stories = islice(StoryWorld().stories(0, "test"), STORIES)
    story = min((story for story in stories if story.facts.holder), key=lambda story: len(story.text))
    rng = random.Random(0)
    first, second = (question_about(kind, story.facts, story.facts.hero, rng) for kind in KINDS)
    return story.text, first, second

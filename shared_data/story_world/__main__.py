"""Print stories, and with `--bits` the bits of every choice in them.

Run: `python -m shared_data.story_world --seed 1 --count 2`
     `python -m shared_data.story_world --seed 1 --bits`
     `python -m shared_data.story_world --task questions --count 3`
"""

from __future__ import annotations

import argparse
import sys
from itertools import islice

from shared_data.errors import UserError
from shared_data.story_world import Story, StoryWorld
from shared_data.story_world.splits import SPLITS

TASKS = ("questions", "multiple_choice", "requests", "preference_pairs", "dirt")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m shared_data.story_world", description="Print stories.")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same stories")
    parser.add_argument("--count", type=int, default=1, help="how many")
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument(
        "--bits", action="store_true", help="show the bits of every choice, recovered from the text"
    )
    parser.add_argument("--task", choices=TASKS, help="print records of a task instead of stories")
    options = parser.parse_args(arguments)
    try:
        if options.task:
            _print_records(options.task, options.seed, options.split, options.count)
            return 0
        world = StoryWorld()
        for story in islice(world.stories(options.seed, options.split), options.count):
            print(_with_bits(world, story) if options.bits else story.text)
            size = len(story.text.encode())
            print(
                f"  [{-story.log2_probability:.1f} bits, {-story.log2_probability / size:.3f} bits per byte]\n"
            )
    except UserError as mistake:
        print(mistake, file=sys.stderr)
        return 2
    return 0


def _with_bits(world: StoryWorld, story: Story) -> str:
    """One line for every piece of text between two costs: the letters, the choices just before them, and their bits."""
    steps = [step for step in world.derivations(story.text, story.split)[0].steps if step.bits > 0]
    lines, start = [], 0
    for position in [*sorted({step.position for step in steps} - {0}), len(story.text)]:
        here = [step for step in steps if step.position == start]
        choices = " + ".join(f"{step.label} {step.bits:.2f}" for step in here)
        lines.append(f"{sum(step.bits for step in here):6.2f}  {story.text[start:position]!r:44} {choices}")
        start = position
    return "\n".join(lines)


def _print_records(task: str, seed: int, split: str, count: int) -> None:
    from shared_data.story_world import tasks
    from shared_data.story_world.dirt import dirty_documents

    records = dirty_documents(seed, split) if task == "dirt" else getattr(tasks, task)(seed, split)
    for record in islice(records, count):
        for name in ("label", "kind", "prompt", "text", "choices", "reply", "chosen", "rejected", "reason"):
            if hasattr(record, name):
                print(f"{name}: {getattr(record, name)}")
        print()


if __name__ == "__main__":
    sys.exit(main())

"""Statistics of generated text that need no model: its variety, and whether it is a possible story of the story world.

The story world knows the exact probability of every text. A possible story has a probability above zero:
every sentence is grammatical, and nobody gives away what they do not have. So the share of possible stories among those that
a model writes without a prompt is an absolute measure of what it has learned.

    uv run python -c "from shared_data.generated_text import describe; print(describe(['a cat sat', 'a hat']))"
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from shared_data.cleaning.words import are_characters, split_at_spaces
from shared_data.errors import UserError

if TYPE_CHECKING:
    from shared_data.story_world import StoryWorld


NO_CHARACTER = "\N{REPLACEMENT CHARACTER}"  # what bytes decode to that make no character


def readable(text: str) -> str:
    """A generated text as a reader can use it: that nothing was written, or nothing that can be read, is said in words."""
    if not text.strip():
        return "(nothing)"
    if not text.replace(NO_CHARACTER, "").strip():
        return "(nothing that can be read: bytes that make no character)"
    return re.sub(f"{NO_CHARACTER}+", NO_CHARACTER, text)


def describe(texts: Sequence[str]) -> dict[str, float]:
    """Mean number of words in a text, or of characters where a script has no spaces, and the share of distinct ones among all."""
    words = [word for text in texts for word in split_at_spaces(text.lower())]
    unit = "characters" if are_characters(words) else "words"
    return {
        f"mean_{unit}": len(words) / max(1, len(texts)),
        "distinct_word_ratio": len(set(words)) / max(1, len(words)),
    }


def consistent_story_ratio(texts: Sequence[str]) -> float:
    """The share of texts that are whole stories of the world, in any of its splits."""
    from shared_data.story_world import StoryWorld

    world = StoryWorld()
    return sum(_is_story(world, text) for text in texts) / len(texts)


def _is_story(world: "StoryWorld", text: str) -> bool:
    for split in ("train", "validation", "test"):
        try:
            world.log2_probability(text, split)
        except UserError:
            continue
        return True
    return False

"""Open a source of conversations: those of the story world, or a user's own in any form that `format_chat` knows.

Instruction tuning learns from them, and the tokenizer may: a tokenizer that has only seen stories spells out every question
letter by letter, and a small model then spends itself on reading.

    uv run python -c "from shared_data.corpus.conversations import *; \
print(next(read_conversations(DataSettings(), 'story_world')))"
"""

from collections.abc import Iterator, Mapping
from typing import Any

from shared_data.corpus.formatting import Message, format_chat
from shared_data.corpus.records import open_records
from shared_data.settings import DataSettings


def read_conversations(
    data: DataSettings, source: str, seed: int = 0, options: Mapping[str, Any] | None = None
) -> Iterator[tuple[str, list[Message]]]:
    """Each conversation of a source with the words that name it in an error.

    options: arguments of the story world's `conversations`, from `SftSettings.story_world_options`.
    Raises `UserError` for a record that is no conversation, or a source that cannot be read.
    """
    if source != "story_world":
        records = data.model_copy(update={"source": source, "hub_config": None, "hub_split": "train"})
        for where, record in open_records(records):
            yield where, format_chat(record, where)
        return
    from shared_data.story_world.conversations import conversations

    stories = conversations(seed, "train", **(options or {}))
    for number, messages in enumerate(stories):
        yield f"conversation {number:,} of the story world", messages

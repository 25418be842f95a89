"""Open a source of conversations: those of the story world, or a user's own in any form that `format_chat` knows.

Instruction tuning learns from them, and the tokenizer may: a tokenizer that has only seen stories spells out every question
letter by letter, and a small model then spends itself on reading.

    uv run python -c "from shared_data.corpus.conversations import *; \
print(next(read_conversations(DataSettings(), 'story_world')))"
"""

from collections.abc import Iterator, Mapping
from typing import Any

from shared_data.corpus.bad_records import BadRecords
from shared_data.corpus.formatting import Conversation, format_chat
from shared_data.corpus.records import open_records
from shared_data.settings import DataSettings


def read_conversations(
    data: DataSettings,
    source: str,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    columns: Mapping[str, str] | None = None,
    bad: BadRecords | None = None,
) -> Iterator[Conversation]:
    """Each conversation of a source.

    options: arguments of the story world's `conversations`, from `SftSettings.story_world_options`.
    columns: what our fields are called in the records. bad: what happens to a record that is no conversation; by default it is a `UserError`.
    """
    if source != "story_world":
        bad = bad or BadRecords()
        for where, record in open_records(data, source, bad):
            conversation = bad.attempt(format_chat, record, where, columns)
            if conversation is None:
                continue
            bad.unread.update(conversation.unread)
            yield conversation
        return
    from shared_data.story_world.conversations import conversations

    stories = conversations(seed, "train", **(options or {}))
    for number, messages in enumerate(stories):
        yield Conversation(messages, where=f"conversation {number:,} of the story world")

"""The data of the stage `sft`: the conversations of a source, in packed batches (levels 2 and 3) or as rows for TRL's trainer (level 1).

train, held_out = open_conversations(settings, tokenizer, model.config.max_position_embeddings)
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from shared_data.corpus.bad_records import BadRecords
from shared_data.corpus.conversations import read_conversations
from shared_data.corpus.formatting import Conversation
from shared_data.corpus.turns import Message, Tool
from shared_data.corpus.used_fields import name_unused, template_source, used_fields
from shared_data.errors import UserError
from shared_data.inference.prompts import encode_chat
from shared_data.settings import Settings
from shared_data.tokenizer.tokenizer import Tokenizer
from shared_data.training.chat_data import (
    Example,
    PackedConversations,
    check_content,
    check_conversation,
    encode_conversation,
    no_room,
    texts_in,
)

HELD_OUT_PART = 20  # one conversation in so many is held out of training


def split_conversations(
    settings: Settings,
    special_tokens: Iterable[str],
    used: Iterable[str],
    bad: BadRecords,
    example_of: Callable[[Conversation], Any],
) -> tuple[list[Any], list[Any]]:
    """Examples to train on, and held-out ones.

    special_tokens: those of the template, which no text may hold.  used: which of `tools`, `weight` and `MEANINGFUL` the level and its
    template use; the others are taken out and counted.  example_of: the level's example of a conversation; it raises `UserError` for one
    that is too long to be learned from.
    """
    section, used, special_tokens = settings.sft, set(used), list(special_tokens)
    found = read_conversations(
        settings.data, section.source, section.seed, section.story_world_options, section.columns, bad
    )
    examples = []
    with bad.reported(section.source):
        for conversation in bad.up_to(section.conversations, "sft.conversations", found):
            if bad.is_good(_check, conversation, special_tokens):
                example = bad.attempt(example_of, _with_used_fields(conversation, used, bad))
                examples += [] if example is None else [example]
    if not examples:
        raise UserError(f"{section.source} has no conversation that can be used; correct the records")
    held_out = examples[::HELD_OUT_PART] if len(examples) > 1 else examples
    return [
        example for number, example in enumerate(examples) if number % HELD_OUT_PART
    ] or examples, held_out


def _check(conversation: Conversation, special_tokens: Iterable[str]) -> None:
    check_conversation(conversation.messages, special_tokens, conversation.where)
    check_content(texts_in(conversation.tools), special_tokens, conversation.where)


def _with_used_fields(conversation: Conversation, used: set[str], bad: BadRecords) -> Conversation:
    """The conversation with role, content and the fields that are used; the others are counted."""
    name_unused(conversation.messages, conversation.tools, used, bad)
    kept = {"role", "content", *used}
    return replace(
        conversation,
        messages=[
            {name: value for name, value in message.items() if name in kept}
            for message in conversation.messages
        ],
        tools=conversation.tools if "tools" in used else None,
    )


def open_conversations(
    settings: Settings, tokenizer: Tokenizer, positions: int, bad: BadRecords | None = None
) -> tuple[PackedConversations, PackedConversations]:
    """Packed conversations to train on, and held-out ones. Raises `UserError` naming the record that is wrong.

    bad: counts what was read, skipped and cut off.
    """
    section = settings.sft
    length = min(section.max_length, positions)
    bad = bad or BadRecords(section.on_bad_record)
    used = {"weight", *used_fields(template_source(tokenizer))}

    def example_of(each: Conversation) -> Example:
        return encode_conversation(tokenizer, each.messages, length, each.where, each.tools)

    train, held_out = split_conversations(settings, tokenizer.special_tokens, used, bad, example_of)
    bad.cut = len({id(example) for example in [*train, *held_out] if example.is_cut})
    pad_id = tokenizer.special_tokens.get("<|pad|>", tokenizer.end_of_text_id)
    packing = (section.per_device_train_batch_size, length, pad_id, section.seed)
    return PackedConversations(train, *packing), PackedConversations(held_out, *packing, shuffle=False)


def open_messages(
    settings: Settings, tokenizer: Any, max_length: int, bad: BadRecords
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The conversations of `open_conversations` as rows of `messages` and `tools`, for a tokenizer and a trainer of the libraries.

    TRL's trainer knows no weights of turns, so they are left out.
    """

    def example_of(each: Conversation) -> dict[str, Any]:
        bad.cut += is_cut(tokenizer, each.messages, max_length, each.where, each.tools)
        return {"messages": each.messages, "tools": each.tools}

    used = used_fields(template_source(tokenizer))
    return split_conversations(settings, tokenizer.get_added_vocab(), used, bad, example_of)


def is_cut(
    tokenizer: Any,
    messages: Sequence[Message],
    max_length: int,
    where: str = "the conversation",
    tools: Sequence[Tool] | None = None,
) -> bool:
    """Whether a conversation is longer than `max_length` tokens, for a tokenizer of transformers.

    Raises `UserError` where its first reply begins only after them, so that there is nothing to learn.
    """
    replies = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    before = messages[: replies[0]]
    prompt = encode_chat(tokenizer, before, tools) if before else []
    if len(prompt) >= max_length:
        raise UserError(no_room(where, len(prompt), max_length))
    return len(tokenizer.apply_chat_template(messages, tools, return_dict=False)) > max_length

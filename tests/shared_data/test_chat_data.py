"""Conversations as training examples: what is a label, how rows are filled, which record is wrong."""

from itertools import islice
from typing import Any

import numpy as np
import pytest

from shared_data.errors import UserError
from shared_data.settings import SPECIAL_TOKENS, load_settings
from shared_data.story_world.conversations import conversations
from shared_data.tokenizer.tokenizer import Tokenizer
from shared_data.training.chat_data import (
    Example,
    PackedConversations,
    best_fit_rows,
    encode_conversation,
)
from shared_data.training.sft_data import open_conversations
from v2_handwritten.data_pipeline.tokenizer.bpe_train import train_bpe


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    chats = islice(conversations(seed=3, questions_per_story=2, request_fraction=0.3), 30)
    texts = [message["content"] for messages in chats for message in messages]
    return train_bpe(texts, 400, special_tokens=SPECIAL_TOKENS)


def turns(*contents: str) -> list[dict[str, str]]:
    """User and assistant in turn."""
    return [
        {"role": ("user", "assistant")[number % 2], "content": content}
        for number, content in enumerate(contents)
    ]


def test_the_labels_are_what_the_assistant_says_and_follow_their_inputs(tokenizer: Tokenizer) -> None:
    example = encode_conversation(tokenizer, turns("Who?", "Mia.", "Where?", "At home."), 1000)
    assert tokenizer.decode(example.ids[example.trained].tolist()) == "Mia.<|im_end|>At home.<|im_end|>"
    (batch,) = PackedConversations([example], 1, len(example.ids) + 5, 1, 0).one_pass()
    row, counted = batch.labels[0, : len(example.ids) - 1], example.trained[1:]
    assert row[counted].tolist() == example.ids[1:][counted].tolist()
    assert set(row[~counted].tolist()) == {-100}
    assert batch.num_items == example.trained.sum()
    assert encode_conversation(tokenizer, turns("Who?", "Mia has it."), 20).ids.tolist() == (
        encode_conversation(tokenizer, turns("Who?", "Mia has it."), 1000).ids[:20].tolist()
    )


def test_best_fit_fills_what_long_ones_leave_with_short_ones() -> None:
    """The textbook case: two full rows of ten, in the order of their first conversations."""
    assert best_fit_rows(np.array([4, 8, 1, 4, 2, 1]), 10) == [[0, 2, 3, 5], [1, 4]]
    assert best_fit_rows(np.array([], dtype=np.int64), 10) == []
    with pytest.raises(AssertionError, match="longer than the row"):
        best_fit_rows(np.array([3, 11]), 10)


def test_each_conversation_comes_once_an_epoch_as_a_document_of_its_own() -> None:
    lengths = (3, 9, 4, 12, 5, 7, 6, 8, 10, 11)
    examples = [Example(np.full(length, length), np.ones(length, dtype=bool)) for length in lengths]
    loader = PackedConversations(examples, 2, 20, 0, seed=4)
    seen: list[int] = []
    while len(seen) < len(examples):
        batch = loader.next_batch()
        for row in range(2):
            for document in np.unique(batch.document_ids[row][batch.input_ids[row] != 0]):
                inside = batch.document_ids[row] == document
                seen.append(int(batch.input_ids[row, inside][0]))
                assert batch.position_ids[row, inside].tolist() == list(range(inside.sum()))
    assert sorted(seen) == sorted(lengths)
    assert loader.order.epoch == 0


def test_one_conversation_in_twenty_is_held_out(tokenizer: Tokenizer) -> None:
    settings = load_settings("smoke", ["sft.conversations=41", "sft.questions_per_story=1"])
    train, held_out = open_conversations(settings, tokenizer, positions=4096)
    assert (len(train.examples), len(held_out.examples)) == (38, 3)
    assert not {tuple(e.ids) for e in train.examples} & {tuple(e.ids) for e in held_out.examples}


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        (turns("a"), "record 7 has no assistant turn"),
        (turns("a <|im_end|>", "b"), r"record 7 contains <\|im_end\|>"),
        (turns("word " * 500, "b"), "record 7 has .* tokens before its first reply, more than the 400"),
    ],
)
def test_a_wrong_conversation_is_named(tokenizer: Tokenizer, messages: list[Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        encode_conversation(tokenizer, messages, 400, "record 7")

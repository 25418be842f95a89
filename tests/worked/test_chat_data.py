"""A conversation of fourteen tokens, its mask and its loss, as in shared_data/training/chat_data.md."""

import numpy as np
import torch

from shared_data.settings import SPECIAL_TOKENS
from shared_data.training.chat_data import Example, PackedConversations, encode_conversation
from tests.worked import agrees
from v2_handwritten.data_pipeline.tokenizer.bpe_train import train_bpe
from v2_handwritten.models.blocks.cross_entropy import cross_entropy

PAGE = "shared_data/training/chat_data.md"

MESSAGES = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Mia."}]
TOKENS = ["<|im_start|>", "user", "\n", "Who", "?", "<|im_end|>", "\n", "<|im_start|>", "assistant", "\n", "Mia", ".", "<|im_end|>", "\n"]  # fmt: skip
# What a model might give the token that comes next.
PROBABILITIES = torch.tensor([0.9, 0.9, 0.1, 0.5, 0.9, 0.9, 0.9, 0.9, 0.9, 0.2, 0.8, 0.5, 0.9])


def test_the_mask_the_labels_and_the_loss() -> None:
    words = ["user", "assistant", "Who", "Mia"]
    tokenizer = train_bpe(words * 2, 400, special_tokens=SPECIAL_TOKENS)
    example = encode_conversation(tokenizer, MESSAGES, max_length=100)
    assert [tokenizer.decode([id]) for id in example.ids.tolist()] == TOKENS
    (batch,) = PackedConversations([example], 1, 13, 0, seed=0, shuffle=False).one_pass()
    labels = torch.from_numpy(batch.labels[0])
    nats = -PROBABILITIES.log()
    rows = np.full((14, 5), np.nan)
    rows[:, 0], rows[:, 1] = example.ids, example.trained
    rows[:13, 2] = np.where(labels == -100, np.nan, labels)
    rows[:13, 3], rows[:13, 4] = PROBABILITIES, nats
    agrees(PAGE, "token", rows)

    # Logits over the vocabulary with these probabilities for the next token, and the rest shared by the others.
    following, V = torch.from_numpy(example.ids[1:]), tokenizer.vocab_size
    probabilities = ((1 - PROBABILITIES) / (V - 1)).unsqueeze(1).repeat(1, V)
    logits = probabilities.scatter(1, following[:, None], PROBABILITIES[:, None]).log()
    agrees(PAGE, "loss", [[cross_entropy(logits, labels)], [cross_entropy(logits, following)]])


def test_two_conversations_in_a_row() -> None:
    first = Example(np.array([11, 12, 13, 14, 15]), np.array([0, 0, 0, 1, 1], bool))
    second = Example(np.array([21, 22, 23, 24]), np.array([0, 0, 1, 1], bool))
    (batch,) = PackedConversations([first, second], 1, 8, 0, seed=0, shuffle=False).one_pass()
    rows = np.stack([batch.input_ids[0], batch.labels[0], batch.position_ids[0], batch.document_ids[0]])
    agrees(PAGE, "packed row", np.where(rows == -100, np.nan, rows.astype(float)))

"""Conversations as training examples: `apply_chat_template` of transformers with the mask of the assistant's tokens.

The template marks what the assistant says (`{% generation %}` in chat_template.py); TRL's `SFTTrainer` makes the same call
when it is told `assistant_only_loss`. Packing is the trainer's. Levels 2 and 3 do both by hand; the theory is in
v2_handwritten/finetune/chat_data.md.

    example = encode_conversation(tokenizer, [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}], 256)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from shared_data.errors import UserError
from v1_quick.data_pipeline.tokenizer.chat_template import CHAT_TEMPLATE
from v1_quick.data_pipeline.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Example:
    """A conversation in tokens."""

    ids: Int64[np.ndarray, " N"]
    trained: Bool[np.ndarray, " N"]  # the tokens that the assistant says


def check_turns(messages: Sequence[Mapping[str, Any]], where: str = "the conversation") -> None:
    """Raise `UserError` unless a system message (if any) comes first, user and assistant take turns, and both speak."""
    roles = [message.get("role") for message in messages]
    turns = roles[1:] if roles and roles[0] == "system" else roles
    if "assistant" not in turns:
        raise UserError(f"{where} has no assistant turn, so there is nothing to learn from it; add the reply")
    for number, role in enumerate(turns):
        expected = "assistant" if number % 2 else "user"
        if role != expected:
            raise UserError(
                f"{where}: turn {number + 1 + len(roles) - len(turns)} is by {role!r}, where {expected!r} is due; put a system "
                "message first, and let user and assistant take turns"
            )


def encode_conversation(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    max_length: int,
    where: str = "the conversation",
) -> Example:
    """The tokens of a conversation, at most `max_length`: what is longer is cut off at the end, as TRL does."""
    check_turns(messages, where)
    for message in messages:
        for token in tokenizer.special_tokens:
            if token in message["content"]:
                raise UserError(
                    f"{where} contains {token}, which the template writes itself; remove it from the text"
                )
    encoded = _template(tokenizer).apply_chat_template(
        list(messages), chat_template=CHAT_TEMPLATE, return_dict=True, return_assistant_tokens_mask=True
    )
    ids = np.array(encoded["input_ids"], dtype=np.int64)
    trained = np.array(encoded["assistant_masks"], dtype=bool)
    if not trained[:max_length].any():
        raise UserError(
            f"{where} has {int(trained.argmax())} tokens before its first reply, more than the {max_length} that a sequence "
            "holds; shorten it or raise sft.sequence_length"
        )
    return Example(ids[:max_length], trained[:max_length])


def _library_tokenizer(tokenizer: Tokenizer) -> Any:
    """Our tokenizer as transformers knows it."""
    from transformers import PreTrainedTokenizerFast

    special = tokenizer.special_tokens
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend,
        eos_token="<|im_end|>" if "<|im_end|>" in special else None,
        # As at levels 2 and 3. Left without one, trl would take <|im_end|>, and read a reply's score at the token before it.
        pad_token="<|pad|>" if "<|pad|>" in special else tokenizer.id_to_token(tokenizer.end_of_text_id),
        chat_template=CHAT_TEMPLATE,
    )


@lru_cache(maxsize=1)
def _template(tokenizer: Tokenizer) -> Any:
    """The same, made once for many conversations; the trainers, which change theirs, get one of their own."""
    return _library_tokenizer(tokenizer)

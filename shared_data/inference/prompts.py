"""Prompts as ids: a text as a document begins, a conversation up to where the assistant's next turn begins.

The tokenizer is any with transformers' `encode` and `decode`, ours included; a model is any with transformers' `config`.

    ids = encode_prompt(model, tokenizer, "Once upon a time")
"""

from collections.abc import Sequence
from typing import Any

from shared_data.corpus.formatting import Message
from shared_data.errors import UserError
from shared_data.tokenizer.chat_template import render_chat
from shared_data.tokenizer.tokenizer import END_OF_TEXT_NAMES


def encode_prompt(model: Any, tokenizer: Any, text: str) -> list[int]:
    """The ids of a text after the token that begins a document in pretraining, `config.bos_token_id`.

    A text that begins with a special token already, typed or of the tokenizer's template, begins with no other.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the prompt {text!r:.60} is not UTF-8; type it in a terminal with UTF-8") from error
    ids = tokenizer.encode(text, add_special_tokens=True)
    begins = bool(ids) and not tokenizer.decode(ids[:1], skip_special_tokens=True)
    first = model.config.bos_token_id
    return ids if begins or first is None or first < 0 else [first, *ids]


def encode_chat(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """The ids of a conversation up to where the assistant's next turn begins."""
    return tokenizer.encode(render_chat(messages, add_generation_prompt=True), add_special_tokens=False)


def stop_ids(tokenizer: Any) -> list[int]:
    """The ids that end a completion: that of the end of the turn first, then of the text."""
    encoded = (
        tokenizer.encode(name, add_special_tokens=False) for name in ("<|im_end|>", *END_OF_TEXT_NAMES)
    )
    return [ids[0] for ids in encoded if len(ids) == 1]  # a token that the tokenizer does not have is several

"""Prompts as ids: a text as a document begins, a conversation up to where the assistant's next turn begins.

The tokenizer is any with transformers' `encode` and `decode`, ours included; a model is any with transformers' `config`.

    ids = encode_prompt(model, tokenizer, "Once upon a time")
"""

from collections.abc import Sequence
from itertools import islice
from typing import Any

from shared_data.corpus.turns import Message, Tool
from shared_data.errors import UserError
from shared_data.inference.arguments import end_ids
from shared_data.tokenizer.tokenizer import END_OF_TEXT_NAMES, NO_TEMPLATE, Tokenizer


def encode_prompt(model: Any, tokenizer: Any, text: str) -> list[int]:
    """The ids of a text after the token that begins a document in pretraining, `config.bos_token_id`.

    Special tokens that a user typed are text. Where the tokenizer puts one before each text, it begins with no other, nor where the chat
    template begins its turns with that token (SmolLM2-Instruct).
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the prompt {text!r:.60} is not UTF-8; type it in a terminal with UTF-8") from error
    ids = encode_text(tokenizer, text, add_special_tokens=True)
    begins = bool(ids) and not tokenizer.decode(ids[:1], skip_special_tokens=True)
    first = model.config.bos_token_id
    if begins or first is None or first < 0:
        return ids
    template = tokenizer.chat_template or ""
    source = template if isinstance(template, str) else template.source
    return ids if tokenizer.decode([first]) in source else [first, *ids]


def encode_text(tokenizer: Any, text: str, add_special_tokens: bool = False) -> list[int]:
    """The ids of a text in which special tokens are text like any other."""
    ours = isinstance(tokenizer, Tokenizer)
    as_text = {"allow_special": False} if ours else {"split_special_tokens": True}  # of transformers
    return tokenizer.encode(text, add_special_tokens=add_special_tokens, **as_text)


def end_of_document(tokenizer: Any) -> int:
    """The id that ends a document. Of a chat model, whose `eos_token` ends a turn, a token that is called so."""
    for name in END_OF_TEXT_NAMES:
        ids = tokenizer.encode(name, add_special_tokens=False)
        if len(ids) == 1:
            return ids[0]
    if tokenizer.eos_token_id is None:
        raise UserError(
            "the tokenizer names no token that ends a document; add eos_token to its tokenizer_config.json"
        )
    return tokenizer.eos_token_id


def encode_chat(
    tokenizer: Any, messages: Sequence[Message], tools: Sequence[Tool] | None = None
) -> list[int]:
    """The ids of a conversation in the model's template, up to where the assistant's next turn begins. What users typed is text."""
    if tokenizer.chat_template is None:
        raise UserError(NO_TEMPLATE)
    ids = tokenizer.apply_chat_template(
        messages, tools=tools, add_generation_prompt=True, sanitize_control_tokens=True, return_dict=False
    )
    if not ids:
        raise UserError("the chat template of the tokenizer writes nothing; correct it or copy it again")
    return ids


def stop_ids(model: Any, tokenizer: Any) -> list[int]:
    """The ids that end a turn of the assistant, from all places that say so: the template, the model's files, the tokenizer's.

    The one with which the template ends a turn comes first.
    """
    generation = getattr(
        model, "generation_config", model.config
    )  # of the library; ours are read into the config
    named = [*end_ids(model.config.eos_token_id), *end_ids(generation.eos_token_id), tokenizer.eos_token_id]
    return list(dict.fromkeys(id for id in [*end_of_turn(tokenizer), *named] if id is not None))


def end_of_turn(tokenizer: Any) -> list[int]:
    """The first control token that the template writes after what the assistant says, as a list; empty where it writes none."""
    if tokenizer.chat_template is None:
        return []
    turns = [{"role": "user", "content": "QUESTION"}, {"role": "assistant", "content": "REPLY"}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception:  # of the library or ours: a template that asks for a system message, too
        return []
    after = tokenizer.encode(text.rpartition("REPLY")[2].strip(), add_special_tokens=False)
    control = (id for id in after if not tokenizer.decode([id], skip_special_tokens=True))
    return list(islice(control, 1))

"""Preference records as training examples: `apply_chat_template` of transformers, prompt and replies.

trl's `DPOTrainer` and `RewardTrainer` make the same call. The order of the batches is the trainer's.

    pair = encode_pair(tokenizer, format_preference({"prompt": "Hi", "chosen": "Hello.", "rejected": "No."}), "record 0")
"""

from collections.abc import Mapping, Sequence
from typing import Any

from shared_data.errors import UserError
from shared_data.preference_pairs import Pair
from v1_quick.data_pipeline.tokenizer.chat_template import CHAT_TEMPLATE
from v1_quick.data_pipeline.tokenizer.tokenizer import Tokenizer
from v1_quick.finetune.chat_data import _library_tokenizer, check_turns


def encode_pair(
    tokenizer: Tokenizer, record: Mapping[str, Sequence[Mapping[str, Any]]], where: str = "the record"
) -> Pair:
    """(prompt ids, chosen ids, rejected ids) of a record whose three parts are messages; a reply ends with its `<|im_end|>`."""
    for part in ("prompt", "chosen", "rejected"):
        contents = [message["content"] for message in record[part]]
        if not any(content.strip() for content in contents):
            raise UserError(f"{where}: {part!r} is empty; complete or remove the record")
        for token in tokenizer.special_tokens:
            if any(token in content for content in contents):
                raise UserError(
                    f"{where} contains {token}, which the template writes itself; remove it from the text"
                )
    library = _library_tokenizer(tokenizer)

    def encode(messages: list[Any], **options: Any) -> list[int]:
        encoded = library.apply_chat_template(
            messages, chat_template=CHAT_TEMPLATE, return_dict=True, **options
        )
        return encoded["input_ids"]

    prompt = encode(list(record["prompt"]), add_generation_prompt=True)
    replies = []
    end = library.convert_tokens_to_ids("<|im_end|>")
    for part in ("chosen", "rejected"):
        check_turns([*record["prompt"], *record[part]], where)
        reply = encode([*record["prompt"], *record[part]])[len(prompt) :]
        replies.append(reply[: len(reply) - reply[::-1].index(end)])  # without the line break after it
    return prompt, replies[0], replies[1]

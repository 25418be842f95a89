"""Preference pairs as TRL's `DPOTrainer` and `RewardTrainer` take them: a dataset of `prompt`, `chosen` and `rejected`.

They may be messages or texts. Texts it is here: messages would let a completion end with the template's line break after
`<|im_end|>`, and the reward model would be trained at a token that no sampled completion ends with.

    train, held_out = preference_datasets(settings, "dpo", tokenizer, 1024, BadRecords())
"""

from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from shared_data.alignment.pair_batches import check_pairs, is_cut
from shared_data.alignment.pairs import PairRecord, check_pair_turns, check_texts, open_pairs
from shared_data.corpus.bad_records import BadRecords
from shared_data.corpus.used_fields import template_source
from shared_data.settings import Settings


def preference_datasets(
    settings: Settings, stage: str, tokenizer: PreTrainedTokenizerFast, max_length: int, bad: BadRecords
) -> tuple[Dataset, Dataset]:
    """Pairs of a stage to train on, and held-out ones. Raises `UserError` naming the record that is wrong.

    bad: counts what was read and skipped, and what is longer than `max_length`.
    """

    def check(record: PairRecord) -> None:
        texts = preference_texts(record, tokenizer)
        prompt, chosen, rejected = tokenizer(
            [texts[part] for part in ("prompt", "chosen", "rejected")], add_special_tokens=False
        )["input_ids"]
        check_pairs([(prompt, chosen, rejected)], max_length, [record["where"]])
        bad.cut += is_cut((prompt, chosen, rejected), max_length)

    train, held_out = (
        Dataset.from_list([preference_texts(record, tokenizer) for record in records])
        for records in open_pairs(settings, stage, check, bad, template_source(tokenizer))
    )
    return train, held_out


def preference_texts(record: PairRecord, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The parts of a record as the chat template writes them, each completion up to its `<|im_end|>`; and the margin."""
    check_texts(record, tokenizer.get_added_vocab())
    check_pair_turns(record)
    prompt = tokenizer.apply_chat_template(
        record["prompt"], record.get("tools"), tokenize=False, add_generation_prompt=True
    )
    texts = {"prompt": prompt, "margin": record["margin"]}
    for part in ("chosen", "rejected"):
        messages = [*record["prompt"], *record[part]]
        text = tokenizer.apply_chat_template(messages, record.get("tools"), tokenize=False)
        texts[part] = text.removeprefix(prompt).removesuffix("\n")
    return texts

"""A user's own records, read through once before the first stage of a run: a wrong line must not stop the last one.

What is wrong with a record by itself is found in every case. Whether it fits the model is known where the tokenizer is finished, or
loaded from a file; the stage itself asks again.

    check_records(run, "dpo", special_tokens=["<|im_end|>"], tokenizer=load_tokenizer(run.tokenizer))
"""

from collections.abc import Iterable
from itertools import islice
from typing import Any

from shared_data.alignment.pair_batches import check_pairs, encode_pair
from shared_data.alignment.pairs import PairRecord, check_pair_turns, check_texts, open_pairs
from shared_data.alignment.prompts import Prompt, check_length, read_prompts
from shared_data.alignment.rewards import check_parameters, open_reward
from shared_data.corpus.bad_records import BadRecords
from shared_data.corpus.conversations import read_conversations
from shared_data.corpus.open_corpus import find_files
from shared_data.model_names import starting_config
from shared_data.runs import RunFolder
from shared_data.settings_align import BUILT_IN_REWARDS
from shared_data.training.chat_data import check_content, check_conversation, encode_conversation, texts_in

STAGES_WITH_RECORDS = ("sft", "reward", "dpo", "ppo", "grpo")


def is_on_this_disk(name: str, source: str) -> bool:
    """Whether a source is files that can be read now: not the story world, nor a hub dataset."""
    return source != "story_world" and bool(find_files(source, name))


def check_records(
    run: RunFolder, stage: str, special_tokens: Iterable[str], tokenizer: Any | None = None
) -> None:
    """Raise `UserError` for the first record of a stage that it will not be able to use, by its file and line.

    tokenizer: the level's, for lengths; None where it is not known yet.
    """
    if not is_on_this_disk(f"{stage}.source", getattr(run.settings, stage).source):
        return
    special_tokens = list(special_tokens)
    if stage == "sft":
        _check_conversations(run, special_tokens, tokenizer)
    elif stage in ("reward", "dpo"):
        _check_pairs(run, stage, special_tokens, tokenizer)
    else:
        _check_prompts(run, stage, special_tokens, tokenizer)


def _check_conversations(run: RunFolder, special_tokens: list[str], tokenizer: Any | None) -> None:
    section, data = run.settings.sft, run.settings.data
    length = min(section.max_length, starting_config(run, "sft").max_position_embeddings)
    bad = BadRecords(section.on_bad_record, is_silent=True)  # the stage reports
    found = read_conversations(data, section.source, columns=section.columns, bad=bad)
    for each in islice(found, section.conversations):
        good = bad.is_good(check_conversation, each.messages, special_tokens, each.where)
        if good and tokenizer is not None and run.level != "v1":  # its trainer cuts off what is too long
            bad.is_good(encode_conversation, tokenizer, each.messages, length, each.where, each.tools)


def _check_pairs(run: RunFolder, stage: str, special_tokens: list[str], tokenizer: Any | None) -> None:
    positions = starting_config(run, stage).max_position_embeddings
    length = min(getattr(run.settings, stage).max_length, positions)

    def check(pair: PairRecord) -> None:
        check_texts(pair, special_tokens)
        check_pair_turns(pair)
        if tokenizer is not None and run.level != "v1":
            check_pairs([encode_pair(tokenizer, pair)], length, [pair["where"]])

    bad = BadRecords(getattr(run.settings, stage).on_bad_record, is_silent=True)
    open_pairs(run.settings, stage, check, bad)


def _check_prompts(run: RunFolder, stage: str, special_tokens: list[str], tokenizer: Any | None) -> None:
    section = getattr(run.settings, stage)
    columns = dict.fromkeys(("prompts", "completions", "completion_ids"))

    def check(prompt: Prompt) -> None:
        columns.update(dict.fromkeys(prompt.columns))
        check_content(texts_in(prompt.messages), special_tokens, prompt.where)
        if tokenizer is not None:
            positions = starting_config(run, stage).max_position_embeddings
            check_length(prompt, run.settings, stage, tokenizer, positions)

    read_prompts(run.settings, stage, check, BadRecords(section.on_bad_record, is_silent=True))
    if section.reward not in BUILT_IN_REWARDS:
        check_parameters(open_reward(section.reward), columns, section.reward)

"""Preference pairs: records of prompt, chosen and rejected completion, from the story world or a user's files.

train, held_out = open_pairs(settings, "dpo")
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from typing import Any

from shared_data.alignment.reward_values import LARGEST, is_usable_number
from shared_data.corpus.bad_records import BadRecords
from shared_data.corpus.formatting import PREFERENCE_FIELDS, format_preference, rename, unread_fields
from shared_data.corpus.records import open_records
from shared_data.corpus.turns import Message, read_tools
from shared_data.corpus.used_fields import name_unused, used_fields
from shared_data.errors import UserError
from shared_data.settings import PreferenceSettings, Settings
from shared_data.training.chat_data import check_content, texts_in

HELD_OUT_PART = 10  # of a user's records, one in so many is held out

PairRecord = dict[str, Any]  # prompt, chosen, rejected: messages; tools, unread, where, margin, reason


def open_pairs(
    settings: Settings,
    stage: str,
    check: Callable[[PairRecord], Any] | None = None,
    bad: BadRecords | None = None,
    template: str | None = None,
) -> tuple[list[PairRecord], list[PairRecord]]:
    """Pairs of a stage to train on, and held-out ones: of the story world's test split, or of a user's records.

    `margin` is by how much the chosen completion is better (0: not known), `reason` what is wrong with the other, and `where` names
    the record in an error. Raises `UserError` naming the record that is wrong.

    check: raises `UserError` for a record that the level cannot learn from, so that `on_bad_record` counts for it, too.  bad: counts
    what was read and skipped.  template: of the chat; what it does not use of a record is named.
    """
    section: PreferenceSettings = getattr(settings, stage)
    if section.source == "story_world":
        train = _story_world_pairs(section.seed, "train", **section.story_world_options)
        held_out = _story_world_pairs(0, "test", question_fraction=section.question_fraction)
        return list(islice(train, section.pairs)), list(islice(held_out, section.eval_pairs))
    bad, records = bad or BadRecords(section.on_bad_record), []
    found = open_records(settings.data, section.source, bad)
    used = None if template is None else used_fields(template)
    with bad.reported(section.source):
        for where, fields in bad.up_to(section.pairs, f"{stage}.pairs", found):
            record = bad.attempt(_pair, fields, where, section.columns)
            if record is not None and (check is None or bad.is_good(check, record)):
                records.append(record)
                bad.unread.update(record["unread"])
                if used is not None:
                    turns = [*record["prompt"], *record["chosen"], *record["rejected"]]
                    name_unused(turns, record.get("tools"), used, bad)
    if not records:
        raise UserError(f"{section.source} has no pair that can be used; correct the records")
    kept = [record for number, record in enumerate(records) if number % HELD_OUT_PART] or records
    return kept, records[::HELD_OUT_PART][: section.eval_pairs]


def _pair(fields: Mapping[str, Any], where: str, columns: Mapping[str, str]) -> PairRecord:
    record = rename(fields, columns, PREFERENCE_FIELDS, where)
    others = {"tools": read_tools(record, where), "unread": unread_fields(record, PREFERENCE_FIELDS)}
    return format_preference(record, where) | others | _extras(record, where)


def check_pair_turns(record: PairRecord) -> None:
    """Raise `UserError` unless each completion begins and ends with a turn of the assistant."""
    for part in ("chosen", "rejected"):
        for which, turn in (("begins", record[part][0]), ("ends", record[part][-1])):
            if turn["role"] != "assistant":
                raise UserError(
                    f"{record['where']}: {part!r} {which} with a turn of {turn['role']!r}, not of the assistant; correct or remove the record"
                )


def check_texts(record: PairRecord, special_tokens: Iterable[str]) -> None:
    """Raise `UserError` for an empty part, or for text with one of the chat template's own tokens."""
    check_content(texts_in(record.get("tools")), special_tokens, record["where"])
    for part in ("prompt", "chosen", "rejected"):
        if not any(message["content"].strip() or message.get("tool_calls") for message in record[part]):
            raise UserError(f"{record['where']}: {part!r} is empty; complete or remove the record")
        check_content(texts_in(record[part]), special_tokens, record["where"])


def _extras(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The optional fields of a record: a number `margin` (as trl reads it) and a text `reason`."""
    margin = record.get("margin")
    if isinstance(margin, str):  # as all values of a CSV
        with suppress(ValueError):
            margin = float(margin) if margin.strip() else None
    if margin is not None and not (isinstance(margin, int | float) and is_usable_number(margin)):
        raise UserError(
            f"{where}: the margin is {margin!r:.40}, not a finite number of at most {LARGEST:.0e} in size; correct or leave it out"
        )
    return {"where": where, "margin": float(margin or 0.0), "reason": str(record.get("reason") or "")}


def _story_world_pairs(seed: int, split: str, **options: Any) -> Iterator[PairRecord]:
    from shared_data.story_world.tasks import preference_pairs

    for number, pair in enumerate(preference_pairs(seed, split, **options)):
        where = f"pair {number:,} of the story world"
        record = {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
        messages: dict[str, list[Message]] = format_preference(record, where)
        yield messages | {"tools": None, "where": where, "margin": 0.0, "reason": pair.reason}

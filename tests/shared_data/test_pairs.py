"""Preference pairs: records to ids to batches, margins, held-out pairs, and the record that is wrong."""

import json
import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared_data.alignment.pair_batches import (
    Pair,
    PairBatch,
    PairBatches,
    check_pairs,
    encode_pair,
    evaluate_pairs,
    pad_pairs,
)
from shared_data.alignment.pairs import PairRecord, open_pairs
from shared_data.corpus.formatting import format_preference
from shared_data.errors import UserError
from shared_data.settings import SPECIAL_TOKENS, RewardSettings, Settings, load_settings
from shared_data.story_world.tasks import preference_pairs
from shared_data.tokenizer.tokenizer import Tokenizer
from v2_handwritten.data_pipeline.tokenizer.bpe_train import train_bpe


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = [pair.prompt + pair.chosen for pair in islice(preference_pairs(0, "train"), 12)]
    return train_bpe(texts, 400, special_tokens=SPECIAL_TOKENS)


def record(
    prompt: Any = "What is it?", chosen: Any = "A ball.", rejected: Any = "A hat.", number: int = 7
) -> PairRecord:
    texts = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    return format_preference(texts, "") | {"where": f"line {number}", "margin": 0.0, "reason": ""}


def records(count: int) -> list[PairRecord]:
    return [record(chosen="A ball" + "!" * number, number=number) for number in range(count)]


def settings_of(folder: Path, lines: Sequence[dict], *overrides: str) -> Settings:
    """Settings whose reward model learns from these records."""
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return load_settings("smoke", [f"reward.source={folder / 'pairs.jsonl'}", *overrides])


def test_a_pair_in_ids_ends_as_generation_will_leave_it(tokenizer: Tokenizer) -> None:
    prompt, chosen, rejected = (tokenizer.decode(ids) for ids in encode_pair(tokenizer, record()))
    assert prompt == "<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\n"
    assert (chosen, rejected) == ("A ball.<|im_end|>", "A hat.<|im_end|>")


def test_tokens_do_not_depend_on_where_the_text_is_cut(tokenizer: Tokenizer) -> None:
    for pair in islice(preference_pairs(0, "train"), 12):
        prompt, chosen, _ = encode_pair(tokenizer, record(pair.prompt, pair.chosen, pair.rejected))
        assert tokenizer.encode(tokenizer.decode([*prompt, *chosen])) == [*prompt, *chosen]


def test_a_batch_has_the_chosen_rows_first_and_is_cut_off_at_the_end() -> None:
    pairs: list[Pair] = [([1, 2], [3], [4, 5, 6, 7]), ([8], [9, 10], [11])]
    input_ids, completion_mask, attention_mask = pad_pairs(pairs, pad_id=0, max_length=5)
    assert input_ids.tolist() == [[1, 2, 3, 0, 0], [8, 9, 10, 0, 0], [1, 2, 4, 5, 6], [8, 11, 0, 0, 0]]
    assert completion_mask.tolist() == [[0, 0, 1, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 1, 1], [0, 1, 0, 0, 0]]
    assert attention_mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]


def test_an_epoch_holds_every_pair_once_with_its_margin(tokenizer: Tokenizer) -> None:
    given = [entry | {"margin": float(number)} for number, entry in enumerate(records(10))]
    batches = PairBatches(given, tokenizer, RewardSettings(per_device_train_batch_size=4), 1024)
    seen = [batches.next_batch() for _ in range(5)]
    indices = np.concatenate([batch.indices for batch in seen])
    assert sorted(indices[:10]) == sorted(indices[10:]) == list(range(10))
    assert indices[:10].tolist() != indices[10:].tolist()
    for batch in seen:
        assert batch.margins.tolist() == batch.indices.tolist()
        assert batch.input_ids.shape[0] == 8
        prompt, chosen, _ = batches.pairs[batch.indices[0]]
        assert batch.input_ids[0][batch.attention_mask[0] == 1].tolist() == [*prompt, *chosen]
        assert batch.completion_lengths[0] == len(chosen)
    assert [batch.num_items for batch in batches.one_pass()] == [4, 4, 2]


def test_in_an_evaluation_every_pair_counts_the_same(tokenizer: Tokenizer) -> None:
    batches = PairBatches(records(5), tokenizer, RewardSettings(per_device_train_batch_size=2), 1024)

    def loss_of(batch: PairBatch) -> tuple[Any, dict[str, float]]:
        return np.float64(batch.indices.mean()), {"count": float(batch.num_items)}

    assert evaluate_pairs(batches, loss_of) == {"loss": 2.0, "count": pytest.approx((2 + 2 + 2 + 2 + 1) / 5)}


def test_the_story_worlds_pairs_are_those_of_the_settings() -> None:
    """Passages are for training: the evaluation has whole stories alone."""
    options = {"question_fraction": 0.3, "passage_fraction": 0.5}
    overrides = [f"reward.{name}={value}" for name, value in options.items()]
    settings = load_settings("tiny", [*overrides, "reward.pairs=60", "reward.eval_pairs=10", "reward.seed=3"])
    worlds = preference_pairs(3, "train", **options), preference_pairs(0, "test", question_fraction=0.3)
    for found, world, count in zip(open_pairs(settings, "reward"), worlds, (60, 10), strict=True):
        expected = [(pair.reason, pair.prompt, pair.chosen) for pair in islice(world, count)]
        texts = [
            (entry["reason"], entry["prompt"][0]["content"], entry["chosen"][0]["content"]) for entry in found
        ]
        assert texts == expected


def test_of_a_users_pairs_every_tenth_is_held_out_and_margins_are_kept(tmp_path: Path) -> None:
    lines = [{"prompt": f"{n}?", "chosen": "yes", "rejected": "no", "margin": n} for n in range(12)]
    train, held_out = open_pairs(settings_of(tmp_path, lines, "reward.pairs=12"), "reward")
    assert [entry["margin"] for entry in held_out] == [0, 10]
    assert [entry["margin"] for entry in train] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 11]


@pytest.mark.parametrize(
    "margin", ["much", math.nan, math.inf, 10**400, -1e300, 1e16], ids=lambda margin: f"{margin!r:.9}"
)
def test_a_margin_that_is_no_usable_number_is_named(margin: Any, tmp_path: Path) -> None:
    good = {"prompt": "?", "chosen": "yes", "rejected": "no"}
    with pytest.raises(UserError, match=r"pairs\.jsonl, \w+ 2: the margin is .*not a finite number"):
        open_pairs(settings_of(tmp_path, [good, good | {"margin": margin}]), "reward")


BAD_RECORDS: dict[str, tuple[dict[str, Any], str]] = {
    "an empty completion": ({"chosen": " "}, "'chosen' is empty"),
    "an empty prompt": ({"prompt": " "}, "'prompt' is empty"),
    "a token of the template": ({"rejected": "a<|im_end|>b"}, r"contains <\|im_end\|>"),
    "roles out of order": (
        {"rejected": [{"role": "user", "content": "a"}]},
        "'rejected' begins with a turn of 'user', not of the assistant; correct",
    ),
}


@pytest.mark.parametrize("kind", BAD_RECORDS)
def test_a_bad_record_is_named(tokenizer: Tokenizer, kind: str) -> None:
    change, message = BAD_RECORDS[kind]
    with pytest.raises(UserError, match=f"line 7.*({message})"):
        encode_pair(tokenizer, record(**change))


BAD_PAIRS: dict[str, tuple[Pair, str]] = {
    "an empty prompt": (([], [5], [6]), "prompt is empty"),
    "an empty chosen completion": (([5], [], [6]), "chosen completion is empty"),
    "an empty rejected completion": (([5], [6], []), "rejected completion is empty"),
    "identical completions": (([5], [6, 7], [6, 7]), "identical"),
    "a completion above the context": (([5], [6], [7] * 9), "rejected completion has 9 tokens"),
    "a prompt that leaves no room": (([5] * 8, [6], [7]), "prompt has 8 tokens"),
    "a difference after the context": (
        ([5] * 4, [6] * 5 + [7], [6] * 5 + [8]),
        "differ only after the 8 tokens",
    ),
}


@pytest.mark.parametrize("kind", BAD_PAIRS)
def test_a_pair_that_teaches_nothing_is_named(kind: str) -> None:
    pair, message = BAD_PAIRS[kind]
    with pytest.raises(UserError, match=f"line 7: .*{message}.*; "):
        check_pairs([([5, 6], [7], [8]), pair], 8, ["line 6", "line 7"])
    with pytest.raises(UserError, match="no preference pair"):
        check_pairs([], 8, [])

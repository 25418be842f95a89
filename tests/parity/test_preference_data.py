"""Preference records to ids at all levels, equal to what trl's trainers make of them; the order of batches, resumed."""

from itertools import islice
from typing import Any

import numpy as np
import pytest

from shared_data.corpus.formatting import format_preference
from shared_data.errors import UserError
from shared_data.settings import SPECIAL_TOKENS, load_settings
from shared_data.story_world.tasks import preference_pairs
from tests.parity.preference_cases import PAD, pairs
from v1_quick.align import preference_data as v1
from v1_quick.data_pipeline.tokenizer.tokenizer import Tokenizer as LibraryTokenizer
from v2_handwritten.align import preference_data as v2
from v2_handwritten.data_pipeline.tokenizer.bpe_train import train_bpe
from v2_handwritten.data_pipeline.tokenizer.tokenizer import Tokenizer
from v3_numpy_deep.align import preference_data as v3
from v3_numpy_deep.data_pipeline.tokenizer.tokenizer import Tokenizer as ArrayTokenizer

RECORDS = [
    format_preference({"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected})
    for pair in islice(preference_pairs(0, "train"), 12)
]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """The same tokenizer at all levels, by module."""
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = [message["content"] for record in RECORDS for part in record.values() for message in part]
    train_bpe(texts, 400, special_tokens=SPECIAL_TOKENS).save(folder)
    return {v1: LibraryTokenizer.load(folder), v2: Tokenizer.load(folder), v3: ArrayTokenizer.load(folder)}


def test_ids_agree_at_all_levels_and_do_not_depend_on_where_the_text_is_cut(
    tokenizers: dict[Any, Any],
) -> None:
    """Level 1 does as trl: prompt and reply tokenized together, then cut; only the line break at the end is left out."""
    end, tokenizer = tokenizers[v2].special_tokens["<|im_end|>"], tokenizers[v2]
    for record in RECORDS:
        found = v2.encode_pair(tokenizer, record)
        for level in (v1, v3):
            assert tuple(map(list, level.encode_pair(tokenizers[level], record))) == tuple(map(list, found))
        assert found[1][-1] == found[2][-1] == end
        assert tokenizer.decode(found[0]).endswith("<|im_start|>assistant\n")
        whole = f"{tokenizer.decode(found[0])}{record['chosen'][0]['content']}<|im_end|>"
        assert tokenizer.encode(whole, add_special_tokens=False) == [*found[0], *found[1]]


BAD_RECORDS = {
    "an empty reply": ({"chosen": [{"role": "assistant", "content": " "}]}, "'chosen' is empty"),
    "an empty prompt": ({"prompt": [{"role": "user", "content": ""}]}, "'prompt' is empty"),
    "a token of the template": (
        {"rejected": [{"role": "assistant", "content": "a<|im_end|>b"}]},
        r"contains <\|im_end\|>",
    ),
    "roles out of order": (
        {"rejected": [{"role": "user", "content": "a"}]},
        "turn 2 is by 'user'|no assistant",
    ),
}


@pytest.mark.parametrize("kind", BAD_RECORDS)
@pytest.mark.parametrize("level", [v1, v2, v3])
def test_a_bad_record_is_refused_by_its_name(tokenizers: dict[Any, Any], level: Any, kind: str) -> None:
    change, message = BAD_RECORDS[kind]
    with pytest.raises(UserError, match=f"line 7.*({message})"):
        level.encode_pair(tokenizers[level], RECORDS[0] | change, "line 7")


@pytest.mark.parametrize("level", [v1, v2, v3])
def test_pairs_and_exam_are_the_story_worlds_as_the_settings_ask(
    tokenizers: dict[Any, Any], level: Any
) -> None:
    """Passages are for training: the evaluation has whole stories alone."""
    lessons = {"question_fraction": 0.3, "passage_fraction": 0.5}
    wanted = [f"reward.{name}={value}" for name, value in lessons.items()]
    settings = load_settings("tiny", [*wanted, "reward.pairs=60", "reward.eval_pairs=10", "reward.seed=3"])
    found = level.open_preferences(settings, "reward", tokenizers[level])
    told = preference_pairs(3, "train", **lessons), preference_pairs(0, "test", question_fraction=0.3)
    for preferences, pairs_of_world, count in zip(found, told, (60, 10), strict=True):
        expected = list(islice(pairs_of_world, count))
        assert preferences.reasons == [pair.reason for pair in expected]
        for (prompt, chosen, _), pair in zip(preferences.pairs, expected, strict=True):
            assert pair.prompt in tokenizers[level].decode(prompt)
            assert tokenizers[level].decode(chosen).startswith(pair.chosen)


@pytest.mark.parametrize("level", [v2, v3])
def test_an_epoch_holds_every_pair_once_and_a_resumed_order_goes_on(level: Any) -> None:
    many = pairs() * 3 + [
        ([5], [6, 7], [8])
    ]  # ten pairs, four in a batch: batches reach over the end of an epoch
    loader = level.PreferenceLoader(many, 4, PAD, 32, seed=1)
    seen = []
    for _ in range(5):
        batch = loader.next_batch()
        assert batch.input_ids.shape[0] == 8
        seen += loader.indices.tolist()
        prompt, chosen, _ = many[loader.indices[0]]
        text = batch.input_ids[0][batch.attention_mask[0] == 1].tolist()
        assert text == [*prompt, *chosen]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]

    first = level.PreferenceLoader(many, 4, PAD, 32, seed=1)
    first.next_batch()
    second = level.PreferenceLoader(many, 4, PAD, 32, seed=1)
    second.load_state_dict(first.state_dict())
    for _ in range(4):
        np.testing.assert_array_equal(first.next_batch().input_ids, second.next_batch().input_ids)
    state = first.state_dict()
    rows = [len(batch.input_ids) for batch in first.one_pass()]
    assert rows == [8, 8, 4]
    assert first.state_dict() == state
    with pytest.raises(UserError, match="seed 1, this run has 2"):
        level.PreferenceLoader(many, 4, PAD, 32, seed=2).load_state_dict(state)
    with pytest.raises(UserError, match=r"record 0: .*identical"):
        level.PreferenceLoader([([1], [2], [2])], 4, PAD, 32, seed=1, names=["record 0"])


def test_levels_2_and_3_give_the_same_batches() -> None:
    loaders = [level.PreferenceLoader(pairs() * 2, 4, PAD, 32, seed=5) for level in (v2, v3)]
    for _ in range(4):
        ours, theirs = (loader.next_batch() for loader in loaders)
        for name in ("input_ids", "reply_mask", "attention_mask"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))

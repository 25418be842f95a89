"""Where a story answers its questions, and which patterns of attention let the last token of the prompt see it."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import islice, product
from typing import Any

import numpy as np
import pytest
import torch

from shared_data.attention.patterns import KINDS, AttentionPattern
from shared_data.errors import UserError
from shared_data.evaluation.kept_answers import (
    AnswerPrompt,
    Kept,
    answer_prompts,
    kept_answers,
    of_equal_cost,
    pattern_rows,
    share_of_pairs,
    visible_row,
)
from shared_data.evaluation.look_patterns import equal_families, own_patterns
from shared_data.model_files.config import ModelConfig
from shared_data.story_world.evidence import answer_spans
from shared_data.story_world.questions import KINDS as QUESTION_KINDS
from shared_data.story_world.questions import question_prompt, questions, read_question
from shared_data.story_world.records import Task
from shared_data.story_world.world import StoryWorld
from shared_data.tokenizer.chat_template import CHAT_TEMPLATE, ChatTemplate
from v2_handwritten.models.blocks.attention_patterns import visible as visible_v2
from v3_numpy_deep.models.blocks.attention_patterns import visible as visible_v3


class _Bytes:
    """A tokenizer of one token a byte."""

    byte_lengths = np.ones(256, dtype=np.int64)

    chat_template = ChatTemplate(CHAT_TEMPLATE)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode())

    def apply_chat_template(self, messages: Any, tokenize: bool = True, **_: Any) -> Any:
        text = self.chat_template.render(messages, add_generation_prompt=True)
        return self.encode(text) if tokenize else text


def ask(question: str, seed: int = 4) -> Task:
    """A question about the story that the README of the world takes apart: Milo and Zoe in the park, and a cape."""
    story = next(StoryWorld().stories(seed))
    return Task("", question_prompt(story.text, question), "", story)


def told(task: Task) -> list[str]:
    return [task.prompt[start:end] for start, end in answer_spans(task)]


def test_the_answers_of_one_story_stand_where_a_reader_finds_them() -> None:
    assert told(ask("What colour is the cape?")) == ["brown"]
    assert told(ask("What is Zoe like?")) == ["polite"]
    assert told(ask("What does Milo love to do?")) == ["jump in puddles"]
    assert told(ask("What is the cape swapped for?")) == [
        "coin"
    ]  # the answer is "a coin", the story has "an old coin"
    assert told(ask("Where are Milo and Zoe?")) == ["park"]
    assert told(ask("Who has the cape now?")) == ["Milo"]
    assert told(ask("How does Zoe feel at the end?")) == ["jolly"]
    assert told(ask("Is the cape red?")) == ["brown"]
    assert told(ask("How old is Zoe?")) == []
    assert told(ask("What do they build?")) == []
    start = ask("What size is the cape?").prompt.index("small strange")  # not the "small" of Zoe
    assert answer_spans(ask("What size is the cape?")) == [(start, start + 5)]


def test_every_question_with_an_answer_has_its_place_and_no_other_has_one() -> None:
    kinds: Counter[str] = Counter()
    for task in islice(questions(seed=3, split="test"), 600):
        spans = told(task)
        assert bool(spans) == task.answerable, task
        kinds[task.kind] += 1
        asked = read_question(task.prompt.rpartition("Question: ")[2], task.story.facts)
        if asked and spans:
            words = QUESTION_KINDS[asked[0]].answer(task.story.facts, asked[1]) or ""
            for span in spans:
                in_other_words = words == "nobody" and re.search(r"[.!?]\"?$", span)
                assert in_other_words or span.lower() in (words.lower(), words.split()[-1].lower()), task
    assert set(kinds) >= {"colour", "holder", "yes/no", "unanswerable", "found", "feeling"}


def test_where_nobody_has_the_thing_the_sentence_that_says_so_is_the_answer() -> None:
    for task in questions(seed=0):
        if task.reply.endswith("is nobody."):
            break
    (span,) = told(task)
    assert task.story.facts.thing in span or "it" in span.split()
    assert span.endswith((".", '."', "!"))


def test_a_window_keeps_the_answer_from_the_size_of_its_distance_on() -> None:
    task = ask("What colour is the cape?")
    (prompt,) = answer_prompts(_Bytes(), [task])
    text = f"<|im_start|>user\n{task.prompt}<|im_end|>\n<|im_start|>assistant\n"
    first = text.index("brown")
    assert prompt == AnswerPrompt(list(text.encode()), [list(range(first, first + 5))])
    distance = len(text) - first  # of the "b", the last token's own place counted
    windows = {
        f"{size}": AttentionPattern("sliding_attention", size)
        for size in (distance - 5, distance - 4, distance - 1, distance)
    }
    kept = list(kept_answers(pattern_rows(windows), [prompt]).values())
    assert [(each.whole, each.part) for each in kept] == [(0, 0), (0, 1), (0, 1), (1, 1)]
    assert kept[-1].keys == distance / len(text)


def test_one_of_several_places_is_enough_and_shares_are_over_questions() -> None:
    # Of eight tokens the last one sees the last four: 4 to 7.
    rows = pattern_rows({"window": AttentionPattern("sliding_attention", 4)})
    spans = [[[0, 1], [5, 6]], [[3, 4]], [[0], [1, 2]], [[7]]]
    prompts = [AnswerPrompt(list(range(8)), of_one) for of_one in spans]
    assert kept_answers(rows, prompts) == {"window": Kept(whole=0.5, part=0.75, keys=0.5)}


def test_a_learned_selection_is_measured_like_a_pattern() -> None:
    def selected(ids: Sequence[int]) -> dict[str, np.ndarray]:
        return {
            f"layer {layer}": np.isin(np.arange(len(ids)), keys)
            for layer, keys in enumerate(([2, 3], [3, 5]))
        }

    kept = kept_answers(selected, [AnswerPrompt([9, 9, 9, 9, 9, 9], [[2, 3]])])
    assert kept == {"layer 0": Kept(1, 1, pytest.approx(1 / 3)), "layer 1": Kept(0, 1, pytest.approx(1 / 3))}


def test_the_last_token_sees_what_the_definitions_of_both_levels_say() -> None:
    for kind, size, sinks, T in product(KINDS, (1, 3, 7), (0, 2), (1, 6, 20)):
        pattern = AttentionPattern(kind, size, 0 if kind == "full_attention" else sinks)
        row = visible_row(pattern, T)
        np.testing.assert_array_equal(row, visible_v3(pattern, np.array([T - 1]), np.arange(T))[0])
        in_torch = visible_v2(pattern, torch.tensor([T - 1]), torch.arange(T))[0]
        np.testing.assert_array_equal(row, in_torch.numpy())


def test_patterns_of_equal_cost_keep_about_as_many_pairs() -> None:
    assert of_equal_cost("sliding_attention", 0.6, 4) == AttentionPattern(
        "sliding_attention", 2
    )  # 7 of 10 pairs; a window of 1 has 4
    for share in (0.5, 0.25):
        for kind in set(KINDS) - {"full_attention"}:
            pattern = of_equal_cost(kind, share, 300)
            assert share_of_pairs(pattern, 300) == pytest.approx(share, abs=0.01)


def test_strides_of_equal_cost_are_few_and_not_many() -> None:
    # A stride of 3 keeps a third of the pairs as well, and sees next to nothing of what has just been said.
    few_strides = of_equal_cost(
        "strided_attention", share_of_pairs(AttentionPattern("strided_attention", 3), 100), 100
    )
    assert few_strides.size > 10


def test_the_table_has_the_layers_of_the_model_and_a_family_of_equal_cost() -> None:
    config = ModelConfig(
        model_type="sparse_llama",
        num_hidden_layers=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "strided_attention"],
        sliding_window=64,
        attention_stride=20,
        num_sink_tokens=4,
    )
    own = own_patterns(config)
    assert own == {
        "sliding_attention 64 + 4 first tokens, layers 0, 2": AttentionPattern("sliding_attention", 64, 4),
        "full_attention, layer 1": AttentionPattern(),
        "strided_attention 20 + 4 first tokens, layer 3": AttentionPattern("strided_attention", 20, 4),
    }
    costs = [share_of_pairs(pattern, 200) for pattern in own.values() if not pattern.is_full]
    families = equal_families(costs, 200)
    for cost, family in zip(sorted(costs, reverse=True), families.values(), strict=True):
        assert [share_of_pairs(pattern, 200) for pattern in family.values()] == pytest.approx(
            [cost] * 3, abs=0.02
        )
    assert list(equal_families([], 200)) == [
        "about 50% of the pairs", "about 25% of the pairs", "about 12% of the pairs",
    ]  # fmt: skip


def test_tokens_that_are_not_the_bytes_of_the_prompt_are_refused() -> None:
    tokenizer = _Bytes()
    tokenizer.byte_lengths = np.full(256, 2)
    with pytest.raises(UserError, match="bytes of tokens stand for a prompt of"):
        answer_prompts(tokenizer, [ask("What colour is the cape?")])

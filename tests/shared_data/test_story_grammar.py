"""The grammar machine by itself: three readers of one description, on grammars small enough to work out by hand."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest

from shared_data.story_world.grammar import (
    Choice,
    Given,
    Slot,
    compile_template,
    enumerate_all,
    parse,
    sample,
    total_log2_probability,
)
from shared_data.story_world.lexicon import Word

PETS = {"pet": ["cat", "dog"], "food": Given("pet", {"cat": ["fish"], "dog": ["bones", "fish"]})}


def test_a_template_spells_out_its_draws_and_remembers_them() -> None:
    start = compile_template("(A|The) [pet] eats [food]. The {pet} is fed.", PETS)
    stories = {told.text: told.bits for told in enumerate_all(start, {})}
    assert stories == {
        f"{article} {pet} eats {food}. The {pet} is fed.": bits
        for article in ("A", "The")
        for pet, food, bits in (("cat", "fish", 2.0), ("dog", "bones", 3.0), ("dog", "fish", 3.0))
    }


def test_a_parsed_text_gives_back_the_state_and_the_cost_of_every_choice() -> None:
    start = compile_template("(A|The) [pet] eats [food].", PETS)
    [told] = parse(start, {}, "The dog eats bones.")
    assert told.state == {"pet": "dog", "food": "bones"}
    assert [(step.label, step.bits, step.position) for step in told.steps] == [
        ("wording", 1.0, 0), ("pet", 1.0, 4), ("food", 1.0, 13),
    ]  # fmt: skip
    assert parse(start, {}, "The cat eats bones.") == []
    assert parse(start, {}, "The dog eats bones. ") == []


def test_a_text_with_two_derivations_has_the_sum_of_their_probabilities() -> None:
    start = (Choice("spelling", [("ab",), ("a", "b"), ("c",)], weights=[5, 2, 1]),)
    derivations = parse(start, {}, "ab")
    assert [told.log2_probability for told in derivations] == [math.log2(5 / 8), math.log2(2 / 8)]
    assert total_log2_probability(derivations) == pytest.approx(math.log2(7 / 8))


def test_options_are_drawn_as_often_as_their_probability_says() -> None:
    start = (
        Choice("weighted", [("x",), ("y",), ("z",)], weights=[6, 3, 1]),
        Choice("uniform", [("0",), ("1",)]),
    )
    uniform = random.Random(0).random
    counts = Counter(sample(start, {}, uniform).text for _ in range(20_000))
    for told in enumerate_all(start, {}):
        expected = 2**told.log2_probability
        assert counts[told.text] / 20_000 == pytest.approx(expected, abs=4 * math.sqrt(expected / 20_000))


def test_functions_steer_and_their_changes_stay_in_their_branch() -> None:
    def count(state: dict) -> tuple:
        state["n"] = state.get("n", 0) + 1
        return ("." * state["n"], Choice("go on", [(count,), ()])) if state["n"] < 3 else (";",)

    def mark(state: dict) -> tuple:
        state["marked"] = True
        return (show,)

    def show(state: dict) -> tuple:
        return ("marked" if "marked" in state else "plain",)

    assert [told.text for told in enumerate_all((Choice("mark", [(mark,), (show,)]),), {})] == [
        "marked",
        "plain",
    ]
    start_state: dict = {}
    assert {told.text: told.bits for told in enumerate_all((count,), start_state)} == {
        ".": 1,
        "...": 2,
        "...;": 2,
    }
    assert start_state == {}


def test_words_know_their_forms() -> None:
    assert [Word(text).a for text in ("red", "orange", "honest")] == ["a red", "an orange", "an honest"]
    told = sample((Slot("who", "he"), " and ", Slot("who")), {"who": Word("Tim", he="he")}, random.random)
    assert told.text == "he and Tim"
    with pytest.raises(AttributeError, match="has no form 'she'"):
        Word("Tim").she  # noqa: B018

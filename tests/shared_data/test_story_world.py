"""The story world: its probabilities are exact, its splits are disjoint, its stories read like stories."""

from __future__ import annotations

import math
import re
from itertools import islice

import pytest

from shared_data.errors import UserError
from shared_data.story_world import StoryWorld
from shared_data.story_world.__main__ import main
from shared_data.story_world.splits import SPLITS, split_of


@pytest.fixture(scope="module")
def world() -> StoryWorld:
    return StoryWorld()


@pytest.mark.parametrize("split", SPLITS)
def test_probabilities_of_all_stories_of_a_small_world_sum_to_one(split: str) -> None:
    stories = list(StoryWorld.small().enumerate(split))
    assert len(stories) > 500
    assert sum(2.0**story.log2_probability for story in stories) == pytest.approx(1.0, abs=1e-9)


def test_the_mean_cost_of_drawn_stories_is_the_entropy() -> None:
    """What `stories` draws follows the probabilities that it states."""
    world = StoryWorld.small()
    exact = {story.text: story.log2_probability for story in world.enumerate()}
    entropy = -sum(2.0**log2 * log2 for log2 in exact.values())
    variance = sum(2.0**log2 * (log2 + entropy) ** 2 for log2 in exact.values())
    drawn = list(islice(world.stories(seed=1), 5000))
    assert all(exact[story.text] == pytest.approx(story.log2_probability, abs=1e-9) for story in drawn)
    mean = -sum(story.log2_probability for story in drawn) / len(drawn)
    assert mean == pytest.approx(entropy, abs=4 * math.sqrt(variance / len(drawn)))


@pytest.mark.parametrize("split", SPLITS)
def test_probability_read_from_the_text_equals_the_recorded_one(world: StoryWorld, split: str) -> None:
    for story in islice(world.stories(seed=11, split=split), 150):
        assert world.log2_probability(story.text, split) == story.log2_probability


@pytest.mark.parametrize("split", SPLITS)
def test_a_story_of_the_full_world_has_one_derivation(world: StoryWorld, split: str) -> None:
    for story in islice(world.stories(seed=12, split=split), 150):
        assert len(world.derivations(story.text, split)) == 1


def test_a_text_outside_the_language_is_refused(world: StoryWorld) -> None:
    text = next(world.stories(seed=1)).text
    for stranger in ("", "Once upon a time", text + " ", text.replace(".", "!", 1), text[:-1]):
        with pytest.raises(UserError, match="not a story of the train split"):
            world.log2_probability(stranger)


def test_a_split_holds_only_its_own_combinations(world: StoryWorld) -> None:
    for split in SPLITS:
        for story in islice(world.stories(seed=3, split=split), 300):
            hero, place, thing = (story.state[key] for key in ("hero", "place", "thing"))
            assert split_of(hero, place, thing) == split
    held_out = next(world.stories(seed=3, split="test")).text
    with pytest.raises(UserError):
        world.log2_probability(held_out, "train")


def test_the_same_seed_tells_the_same_stories(world: StoryWorld) -> None:
    first, again = (list(islice(StoryWorld().stories(seed=5), 20)) for _ in range(2))
    assert first == again
    assert first != list(islice(world.stories(seed=6), 20))


def test_the_command_prints_a_story_and_the_bits_of_its_choices(capsys: pytest.CaptureFixture[str]) -> None:
    story = next(StoryWorld().stories(seed=1))
    assert main(["--seed", "1", "--bits"]) == 0
    lines = capsys.readouterr().out.splitlines()
    costs = [float(line[:6]) for line in lines if re.match(r" *\d+\.\d\d  ", line)]
    assert sum(costs) == pytest.approx(-story.log2_probability, abs=0.01 * len(costs))
    assert main(["--seed", "1"]) == 0
    assert story.text in capsys.readouterr().out


def test_stories_have_4_to_14_sentences_and_hundreds_of_words(world: StoryWorld) -> None:
    words: set[str] = set()
    for story in islice(world.stories(seed=4), 2000):
        sentences = re.findall(r'[.!?]"?(?=\s+["A-Z]|$)', story.text)
        assert 4 <= len(sentences) <= 14, story.text
        words.update(re.findall(r"[a-z]+", story.text.lower()))
    assert len(words) >= 400

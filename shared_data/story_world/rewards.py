"""A programmatic reward: how good a completion of a prompt is, in [0, 1], from the two texts alone.

To a *question about a story* (`questions.py`) the story is read back, which gives its facts, so the right answer is known:

    1.0 exactly the right reply · 0.8 the right reply in other case or punctuation · 0.5 a longer reply that contains it
    (for "the story does not say", only with a superfluous phrase, `wordiness.py`) · 0.0 anything else

To a *request* (`requests.py`) or any other prompt, five components are weighed:

    words 0.4        share of the required words (and hero) that occur; 1 if none is required
    length 0.1       the requested length, or else 4 to 14 sentences
    form 0.1         begins with a capital or a quotation mark, ends a sentence, quotation marks come in pairs
    variety 0.2      distinct word trigrams / word trigrams: 1 for a story, near 0 for a loop
    consistency 0.2  1 for a possible story of the world, in whichever split; otherwise half of a cheap check: at most two
                     names, the main things keep one colour, all words known

The reward never raises, whatever the texts are. A model may learn to exploit it: it does not measure charm, or sense
beyond the world's.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from shared_data.errors import UserError
from shared_data.story_world.lexicon import COLOURS, NAMES, THINGS
from shared_data.story_world.questions import answer, split_prompt
from shared_data.story_world.records import DOES_NOT_SAY
from shared_data.story_world.requests import Request, count_sentences, parse_request, verify
from shared_data.story_world.splits import SPLITS
from shared_data.story_world.wordiness import plain
from shared_data.story_world.world import Story, StoryWorld


class RewardParts(NamedTuple):
    """The components of the reward of a story, each in [0, 1]; see the module's docstring."""

    words: float
    length: float
    form: float
    variety: float
    consistency: float

    @property
    def total(self) -> float:
        return sum(weight * part for weight, part in zip(WEIGHTS, self, strict=True))


WEIGHTS = RewardParts(words=0.4, length=0.1, form=0.1, variety=0.2, consistency=0.2)


def reward(prompt: str, reply: str) -> float:
    """The reward of a reply, in [0, 1]."""
    right = right_answer(prompt)
    if right is None:
        return story_reward(parse_request(prompt), reply).total
    return _answer_reward(right, reply.strip())


def is_right(prompt: str, reply: str) -> bool | None:
    """Whether a reply has the right answer, whatever its length; `None` if the prompt is no question about a story of the world."""
    right = right_answer(prompt)
    return None if right is None else _answer_reward(right, reply.strip()) > 0


def right_answer(prompt: str) -> str | None:
    """The right reply to a question about a story of the world; `None` for any other prompt."""
    parts = split_prompt(prompt)
    story = read_story(parts[0]) if parts else None
    return answer(parts[1], story.facts) if parts and story else None


def _answer_reward(right: str, reply: str) -> float:
    if reply == right:
        return 1.0
    said, known = (" ".join(re.findall(r"\w+", text.lower())) for text in (reply, right))
    if said == known:
        return 0.8
    contained = f" {known} " in f" {said} " and len(said) <= 4 * len(known) + 20
    return 0.5 if contained and (right != DOES_NOT_SAY or plain(reply) == right) else 0.0


def story_reward(request: Request | None, text: str) -> RewardParts:
    """The components for a story, requested or not."""
    text = text.strip()
    if not text:
        return RewardParts(0.0, 0.0, 0.0, 0.0, 0.0)
    verdict = verify(request or Request(()), text)
    required = len(request.words) + bool(request.hero) if request else 0
    length_met = verdict.length_met if request and request.length else 4 <= count_sentences(text) <= 14
    return RewardParts(
        words=1 - len(verdict.missing) / required if required else 1.0,
        length=float(length_met),
        form=_form(text),
        variety=_variety(text),
        consistency=1.0 if read_story(text) else 0.5 * _plausibility(text),
    )


def _form(text: str) -> float:
    checks = (
        text[0].isupper() or text[0] == '"',
        bool(re.search(r'[.!?]"?$', text)),
        text.count('"') % 2 == 0,
    )
    return sum(checks) / len(checks)


def _variety(text: str) -> float:
    words = text.lower().split()
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    return len(set(trigrams)) / len(trigrams) if trigrams else 0.0


def _plausibility(text: str) -> float:
    words = re.findall(r"\w+", text)
    known = sum(word.lower() in _vocabulary() for word in words) / max(1, len(words))
    names = len({word for word in words if word in _NAMES})
    colours: dict[str, set[str]] = {}
    for colour, thing in _COLOURED.findall(text):
        colours.setdefault(thing, set()).add(colour)
    steady = all(len(of_one_thing) == 1 for of_one_thing in colours.values())
    return (known + (1 <= names <= 2) + steady) / 3


_NAMES = frozenset(map(str, NAMES))
_COLOURED = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(THINGS)})\b")


@lru_cache(maxsize=1)
def _world() -> StoryWorld:
    return StoryWorld()


@lru_cache(maxsize=1)
def _vocabulary() -> frozenset[str]:
    """Every word of the world, collected from enough stories that none is missed."""
    return frozenset(
        word for _, story in zip(range(3000), _world().stories(seed=0), strict=False)
        for word in re.findall(r"\w+", story.text.lower())
    )  # fmt: skip


_REMEMBERED = 4096  # texts whose stories are known without reading them back, which takes milliseconds each
_stories: dict[str, Story | None] = {}  # the oldest first


def remember_story(text: str, story: Story | None) -> None:
    """Keep a story that was just generated or parsed, so that it need not be parsed again."""
    if len(_stories) >= _REMEMBERED:
        del _stories[next(iter(_stories))]
    _stories[text] = story


def read_story(text: str) -> Story | None:
    """The story behind a text, in whichever split it is; `None` if it is no story of the world."""
    if text not in _stories:
        remember_story(text, _read_back(text))
    return _stories[text]


def _read_back(text: str) -> Story | None:
    """The story of a text from its letters alone."""
    for split in SPLITS:
        try:
            return _world().read(text, split)
        except UserError:
            continue
    return None

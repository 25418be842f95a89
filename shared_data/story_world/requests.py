"""Requests to write a story, and a verifier that parses the request from the prompt.

A request names words that the story must hold, and sometimes a length. The reply that goes with it is a story of the
world which meets it: the words are drawn from the story, so every combination belongs to the split.

    Write a story with the words: kite, golden, forest.
    Write a short story about Lily with the words: drum, brave.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import NamedTuple

from shared_data.story_world.records import Task
from shared_data.story_world.world import Story, StoryWorld

SHORT, LONG = 9, 12  # sentences: "short" is at most, "long" is at least so many

_PROMPT = re.compile(
    r"(?:Write|Tell me) a (?:(?P<length>short|long) )?story(?: about (?P<hero>\w+))? with the words: (?P<words>[\w, ]+)\."
)
_BETWEEN_SENTENCES = re.compile(r'(?:(?<=[.!?])|(?<=[.!?]"))\s+(?=["A-Z])')
_SENTENCE_END = re.compile(r'[.!?]"?(?=\s+["A-Z]|\s*$)')


class Request(NamedTuple):
    """The requirements of a prompt."""

    words: tuple[str, ...]
    hero: str | None = None
    length: str | None = None  # "short" or "long"

    @property
    def prompt(self) -> str:
        length = f"{self.length} " if self.length else ""
        about = f" about {self.hero}" if self.hero else ""
        return f"Write a {length}story{about} with the words: {', '.join(self.words)}."


class Verdict(NamedTuple):
    """How far a reply meets a request."""

    missing: tuple[str, ...]  # required words (and the hero) that do not occur
    length_met: bool

    @property
    def met(self) -> bool:
        return not self.missing and self.length_met


def parse_request(prompt: str) -> Request | None:
    """The request behind a prompt, or `None` if it is not one."""
    match = _PROMPT.fullmatch(prompt.strip())
    if not match:
        return None
    return Request(tuple(re.findall(r"\w+", match["words"])), match["hero"], match["length"])


def count_sentences(text: str) -> int:
    """Sentences as a reader counts them: '"Look!" said Tim.' is one."""
    return len(_SENTENCE_END.findall(text))


def sentences_of(text: str) -> list[str]:
    """The sentences of a text, which a blank each would join again."""
    return _BETWEEN_SENTENCES.split(text)


def verify(request: Request, text: str) -> Verdict:
    """Check a reply: whole words in any case ("kite" is not in "kites")."""
    present = set(re.findall(r"\w+", text.lower()))
    required = (*request.words, *([request.hero] if request.hero else []))
    sentences = count_sentences(text)
    length_met = {"short": 0 < sentences <= SHORT, "long": sentences >= LONG, None: True}[request.length]
    return Verdict(tuple(word for word in required if word.lower() not in present), length_met)


def _request_for(story: Story, rng: random.Random) -> Request:
    """Two to four words that the story holds, and half of the time one more wish."""
    facts = story.facts
    candidates = [
        facts.hero_kind,
        facts.hero_trait,
        facts.place,
        facts.colour,
        facts.friend_kind,
        *facts.told_words,
    ]
    words = dict.fromkeys(word for word in candidates if word.isalpha() and word != facts.thing)
    chosen = [facts.thing, *rng.sample(list(words), rng.choice((1, 2, 3)))]
    rng.shuffle(chosen)
    sentences = count_sentences(story.text)
    length = "short" if sentences <= SHORT else "long" if sentences >= LONG else None
    return Request(
        tuple(chosen), facts.hero if rng.random() < 0.5 else None, length if rng.random() < 0.5 else None
    )


def requests(seed: int = 0, split: str = "train", world: StoryWorld | None = None) -> Iterator[Task]:
    """Requests without end, each with a story that meets it."""
    rng = random.Random(f"requests/{seed}/{split}")
    for story in (world or StoryWorld()).stories(seed, split):
        request = _request_for(story, rng)
        kind = "words" if not request.length else f"words, {request.length}"
        yield Task(kind, request.prompt, story.text, story)

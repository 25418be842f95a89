"""Questions about a passage: some consecutive sentences of a story, and the questions that they answer.

A model that has not yet learned where to look spreads its attention evenly over all T tokens before it. A fact then makes up
1/T of what it reads, and 1/T of the gradient that could teach it to look there: among the four hundred tokens of a long
conversation that is very little, in one sentence it is much. So passages are mixed among whole stories
(shared_data/training/chat_data.md).

Which sentence answers a question is found by the phrasings of the world (`_TELLS`, `telling_sentences`); tests check the result
against the facts of whole stories.

    >>> for task in ask_about_passage(story, random.Random(0), length=1, count=8): print(task.prompt, task.reply)
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from shared_data.story_world.facts import Facts
from shared_data.story_world.lexicon import NAMES
from shared_data.story_world.questions import (
    KINDS,
    STATEMENTS,
    kinds_and_names,
    question_about,
    question_prompt,
    repeats,
    reply_with,
    yes_no_question,
)
from shared_data.story_world.records import Task
from shared_data.story_world.requests import sentences_of
from shared_data.story_world.world import Story

# A sentence contains the answer to a kind of question if it has all of these, whole words in any case: `|` stands between phrases of
# which one is enough, `!` before one that must not be there. {trait} and {species} are those of {name}; {word} is the answer's last.
_TELLS: dict[str, tuple[str, ...]] = {
    "hero": ("{hero_kind} {hero_trait}", "{hero}"),
    "friend": ("{friend}", "{hero}|{friend_kind} {friend_trait}"),
    "species": ("{species} {trait}", "{name}"),
    "trait": ("{species} {trait}", "{name}"),
    "hobby": ("to {answer}",),
    "place": ("the {place}", "!{hero_kind} {hero_trait}"),  # not "everyone in the castle knew …"
    "colour": ("{answer} {thing}",),
    "size": ("{answer}", "{thing}", "!a little later"),
    "feeling": ("{answer}", "am|was|felt|feel|feeling|made|grew|became|looked|how", "{name}|{he}"),
    "found": ("{answer}",),
    "count": ("there are {answer}|there were {answer}|made {answer}",),
    "food": ("{word}", "share|shared|half|some|eat"),
    "building": ("{answer}",),
    "material": ("from {word}",),
    "trade": ("{word}", "{thing}"),
    "helped": ("{answer}",),
}
_LAST_COUNTS = ("feeling", "found")  # an earlier sentence may tell what is no longer so
_AIMED = 0.9  # of the passages tell something that was chosen before; the others may tell nothing at all
_RARELY_TOLD = ("food", "building", "material", "trade", "helped", "count")
_RARE = 8  # times as often as other kinds
_HE = {str(name): name.he for name in NAMES}
_UNCLEAR = ("hero", "friend", "feeling", "found", "holder")  # a passage may hint at these without telling


def ask_about_passage(
    story: Story, rng: random.Random, length: int | None, count: int, yes_no_fraction: float = 0.0
) -> list[Task]:
    """At most `count` questions about `length` sentences of the story (fewer, if it has no more), all different.

    All that the passage answers, a share of it as yes/no questions where possible, and sometimes a question that it
    does not answer; for a passage that answers nothing, only such a one. Without a length, the passage is how the story begins, until both
    friends are known.
    """
    facts, sentences = story.facts, sentences_of(story.text)
    answers = {(kind, name): KINDS[kind].answer(facts, name) for kind, name in kinds_and_names(facts)}
    telling = {
        (kind, name): [] if answer is None else telling_sentences(kind, facts, name, answer, sentences)
        for (kind, name), answer in answers.items()
    }
    if length is None:
        start, length = 0, telling["species", facts.friend][0] + 1
    else:
        length = min(length, len(sentences))
        start = _start_of_passage(telling, len(sentences), length, rng)
    passage = range(start, start + length)
    text = " ".join(sentences[start : start + length])
    told, untold = [], []
    for (kind, name), answer in answers.items():
        if any(place in passage for place in telling[kind, name]):
            told.append((kind, name, answer))
        elif answer is None or (kind not in _UNCLEAR and answer.split()[-1] not in text):
            untold.append((kind, name, None))
    rng.shuffle(told)
    left_out = repeats(facts, rng)
    told = [entry for entry in told if entry[:2] not in left_out]
    unanswered = rng.randint(0, max(1, round(len(told) / 5))) if told else 1
    asked = told[: count - unanswered] + rng.sample(untold, min(unanswered, len(untold)))
    rng.shuffle(asked)
    statements = {(statement.kind, getattr(facts, statement.about)): statement for statement in STATEMENTS}
    tasks = []
    for kind, name, answer in asked:
        statement = statements.get((kind, name))
        if statement and answer is not None and rng.random() < yes_no_fraction:
            tasks.append(yes_no_question(story, statement, rng, text))
        else:
            label = "unanswerable" if answer is None else kind
            prompt = question_prompt(text, question_about(kind, facts, name, rng))
            tasks.append(Task(label, prompt, reply_with(kind, facts, name, answer), story))
    return tasks


def _start_of_passage(
    telling: Mapping[tuple[str, str], list[int]], sentences: int, length: int, rng: random.Random
) -> int:
    """Where a passage begins: mostly so that it answers a drawn kind of question, rare kinds more often than by chance.

    telling: for each kind of question and name, the sentences that contain the answer.
    """
    first, last = 0, sentences - length
    if rng.random() < _AIMED:
        told = {kind: places for (kind, _), places in telling.items() if places}
        weights = [_RARE if kind in _RARELY_TOLD else 1 for kind in told]
        place = rng.choice(rng.choices(list(told.values()), weights)[0])
        first, last = max(first, place - length + 1), min(last, place)
    return rng.randint(first, last)


def telling_sentences(kind: str, facts: Facts, name: str, answer: str, sentences: Sequence[str]) -> list[int]:
    """The sentences of a story, by number, each of which alone contains this answer to a question of this kind about `name`."""
    if kind == "holder":
        return [len(sentences) - 2]  # what became of the thing comes before the farewell
    if kind not in _TELLS:
        return []
    words = vars(facts) | {
        "name": name,
        "he": _HE[name],
        "species": facts.kind_of(name),
        "trait": facts.trait_of(name),
        "answer": answer,
        "word": answer.split()[-1],
    }
    parts = [part.format_map(words).lower() for part in _TELLS[kind]]
    needed = [[f" {phrase} " for phrase in part.split("|")] for part in parts if part[0] != "!"]
    unwanted = [f" {part[1:]} " for part in parts if part[0] == "!"]
    telling = [i for i, sentence in enumerate(sentences) if _tells(_words(sentence), needed, unwanted)]
    return telling[-1:] if kind in _LAST_COUNTS else telling


def _tells(words: str, needed: list[list[str]], unwanted: list[str]) -> bool:
    """Whether of each list of phrases one is there, and none that is unwanted: a row of `_TELLS`.

    Loops: `any` over so few costs twice as much, and this is called a hundred times a passage.
    """
    for phrases in needed:
        for phrase in phrases:
            if phrase in words:
                break
        else:
            return False
    return not any(phrase in words for phrase in unwanted)


@lru_cache(maxsize=64)
def _words(sentence: str) -> str:
    """The words alone, in lower case, with a blank on either side of each."""
    return f" {' '.join(re.findall(r'[a-z]+', sentence.lower()))} "

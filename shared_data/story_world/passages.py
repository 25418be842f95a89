"""Lessons about a passage: some sentences of a story in a row, and questions that these sentences answer, or do not.

A model that has not yet learned where to look spreads its attention evenly over all T tokens before it. A fact then makes up
1/T of what it reads, and 1/T of the gradient that could teach it to look there: among the four hundred tokens of a long
conversation that is next to nothing, in one sentence it is much. So the easy lessons come first (curriculum learning, Bengio
et al. 2009); measurements in v2_handwritten/finetune/chat_data.md.

What a passage tells is decided by how the world tells it (`_TELLS`): `telling_sentences` is exact for its phrasings, which tests check
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
    ABOUT_A_PERSON,
    KINDS,
    STATEMENTS,
    kinds_and_names,
    question_about,
    question_prompt,
    reply_with,
    yes_no_question,
)
from shared_data.story_world.records import DOES_NOT_SAY, Task
from shared_data.story_world.requests import sentences_of
from shared_data.story_world.world import Story

# A sentence tells the answer to a kind of question if it has all of these, whole words in any case: `|` stands between phrases of
# which one is enough, `!` before one that must not be there. {trait} and {species} are those of {name}; {word} is the answer's last.
_TELLS: dict[str, tuple[str, ...]] = {
    "hero": ("{hero_trait} {hero_kind}", "{hero}"),
    "friend": ("{friend}", "{hero}|{friend_trait} {friend_kind}"),
    "species": ("{trait} {species}", "{name}"),
    "trait": ("{trait} {species}", "{name}"),
    "hobby": ("to {answer}",),
    "place": ("the {place}", "!{hero_trait} {hero_kind}"),  # not "everyone in the castle knew …"
    "colour": ("{answer} {thing}",),
    "size": ("{answer}", "{thing}", "!a little later"),
    "feeling": ("{answer}", "am|was|felt|feel|feeling|made|grew|became|looked|how", "{name}|{he}"),
    "found": ("{answer}",),
    "count": ("there are {answer}|there were {answer}|made {answer}",),
    "food": ("{word}", "share|shared|half|some|eat"),
    "building": ("{answer}",),
    "material": (
        "of {word}|from {word}|with {word}|gathered {word}|collected {word}|brought {word}|enough {word}|some {word}|good {word}",
        "!covered with",
    ),
    "trade": ("{word}", "{thing}"),
    "helped": ("{answer}",),
}
_LAST_COUNTS = ("feeling", "found")  # an earlier sentence may tell what is no longer so
_HE = {str(name): name.he for name in NAMES}
_UNCLEAR = ("hero", "friend", "feeling", "found", "holder")  # a passage may hint at these without telling


def ask_about_passage(story: Story, rng: random.Random, length: int, count: int) -> list[Task]:
    """At most `count` questions about `length` sentences of the story, or some more or fewer where these do not suit it; all different.

    The passage answers at least one; everything that it answers is asked, and what can be put as yes/no once more as that. About a
    seventh of the questions cannot be answered.
    """
    facts, sentences = story.facts, sentences_of(story.text)
    answers = {(kind, name): KINDS[kind].answer(facts, name) for kind, name in kinds_and_names(facts)}
    telling = {
        (kind, name): places
        for (kind, name), answer in answers.items()
        if answer is not None and (places := telling_sentences(kind, facts, name, answer, sentences))
    }
    start, length = _window(telling, length, len(sentences), rng)
    text = " ".join(sentences[start : start + length])

    def told(places: list[int]) -> bool:
        return any(start <= place < start + length for place in places)

    tasks, untold = [], []
    for (kind, name), answer in answers.items():
        if told(telling.get((kind, name), [])):
            question = question_about(kind, facts, name, rng)
            reply = reply_with(kind, facts, name, answer)
            tasks.append(Task(kind, question_prompt(text, question), reply, story))
        elif answer is None or (kind not in _UNCLEAR and answer.split()[-1] not in text):
            untold.append((kind, name))
    for statement in STATEMENTS:
        name = facts.friend if "{friend}" in statement.phrasing else facts.hero
        truth = statement.truth(facts)
        if told(telling_sentences(statement.kind, facts, name, truth, sentences)):
            tasks.append(yes_no_question(story, statement, rng, text))
    rng.shuffle(tasks)
    unanswered = min(len(untold), sum(rng.random() < 0.16 for _ in tasks))
    tasks = tasks[: count - unanswered]
    for kind, name in rng.sample(untold, unanswered):
        question = question_about(kind, facts, name, rng)
        tasks.append(Task("unanswerable", question_prompt(text, question), DOES_NOT_SAY, story))
    rng.shuffle(tasks)
    return tasks


def _window(
    telling: Mapping[tuple[str, str], list[int]], length: int, total: int, rng: random.Random
) -> tuple[int, int]:
    """The first sentence of a passage that tells something, and how many follow.

    A passage of several sentences that tells something of one of the two friends tells it of the other as well, where the story does:
    who is meant must be learned, and a model is slow to learn it.
    """
    kinds = list(dict.fromkeys(kind for kind, _ in telling))
    kind = rng.choices(kinds, [2.0 if kind in ABOUT_A_PERSON else 1.0 for kind in kinds])[0]
    places = [rng.choice(places) for (other, _), places in telling.items() if other == kind]
    if length == 1:
        places = [rng.choice(places)]
    first, last = min(places), max(places)
    length = min(max(length, last - first + 1), total)
    return rng.randint(max(0, last - length + 1), min(first, total - length)), length


def telling_sentences(kind: str, facts: Facts, name: str, answer: str, sentences: Sequence[str]) -> list[int]:
    """The sentences of a story, by number, each of which alone tells this answer to a question of this kind about `name`."""
    if kind not in _TELLS:
        return []  # who has the thing at the end is known from the whole story only
    words = vars(facts) | {
        "name": name,
        "he": _HE[name],
        "species": facts.kind_of(name),
        "trait": facts.trait_of(name),
        "answer": answer,
        "word": answer.split()[-1],
    }
    wanted = [part.format_map(words).lower() for part in _TELLS[kind]]
    telling = [i for i, sentence in enumerate(sentences) if _has_all(sentence, wanted)]
    return telling[-1:] if kind in _LAST_COUNTS else telling


def _has_all(sentence: str, wanted: list[str]) -> bool:
    """Whether the words of a sentence satisfy a row of `_TELLS`."""
    words = _words(sentence)
    for part in wanted:
        if part[0] == "!":
            if f" {part[1:]} " in words:
                return False
        elif not any(f" {phrase} " in words for phrase in part.split("|")):
            return False
    return True


@lru_cache(maxsize=64)
def _words(sentence: str) -> str:
    """The words alone, in lower case, with a blank on either side of each."""
    return f" {' '.join(re.findall(r'[a-z]+', sentence.lower()))} "

"""Questions about a story, and their answers, which follow from the tracked state.

`ask(kind, facts)` writes a question; `answer(question, facts)` reads a question back and answers it, so an answer can be
scored from the text of a prompt alone (`rewards.py`). Where the story does not say, the right answer is that it does not.

    >>> from itertools import islice
    >>> for task in islice(questions(seed=0), 3): print(task.prompt.split("Question: ")[1], task.reply)
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

from shared_data.story_world.facts import Facts
from shared_data.story_world.lexicon import (
    ANIMALS,
    BUILDINGS,
    COLOURS,
    FEELINGS,
    FOODS,
    HOBBIES,
    MATERIALS,
    NAMES,
    NUMBERS,
    PLACES,
    SIZES,
    STRANGERS,
    TRAITS,
    TRINKETS,
)
from shared_data.story_world.records import DOES_NOT_SAY, MultipleChoice, Task
from shared_data.story_world.world import Story, StoryWorld


class Kind(NamedTuple):
    """The phrasings of a kind of question, with `{…}` taken from the facts, and its answer.

    A reply is a whole sentence that repeats the subject of the question, so its beginning determines what must follow ("The colour of
    the kite is …"): a small model finds the rest of such a sentence in the story more easily
    than a bare word. Whose trait a trait is, is the hardest to find; the reply says first what stands beside it in the story, a
    chain of thought (Wei et al. 2022).
    """

    phrasings: tuple[str, ...]
    # The facts and the name or thing of the question; None: the story does not say.
    answer: Callable[[Facts, str], str | None]
    reply: str  # with {answer}, and perhaps {species}, which is that of {name}


def _event_word(kind: str, key: str, article: bool = False) -> Callable[[Facts, str], str | None]:
    def answer(facts: Facts, _: str) -> str | None:
        event = facts.happened(kind)
        if event is None:
            return None
        return event.words[key].a if article else str(event.words[key])

    return answer


def _found(facts: Facts, _: str) -> str | None:
    """Where the thing was found last; a hidden thing is found where it was hidden."""
    spots = [str(event.words["spot"]) for event in facts.events if "spot" in event.words]
    return spots[-1] if spots else facts.first_spot


KINDS: dict[str, Kind] = {
    "hero": Kind(
        ("Who is the story about?", "Who is the main character?"),
        lambda f, _: f.hero,
        "The story is about {answer}.",
    ),
    "friend": Kind(
        ("Who is the friend of {hero}?", "Who is with {hero}?"),
        lambda f, _: f.friend,
        "The friend of {hero} is {answer}.",
    ),
    "species": Kind(
        ("What kind of creature is {name}?", "What is {name}?"),
        lambda f, name: f.kind_of(name),
        "This is {name} the {answer}.",
    ),
    "trait": Kind(
        ("What is {name} like?", "Which word describes {name}?"),
        lambda f, name: f.trait_of(name),
        "{name} the {species} is {answer}.",
    ),
    "hobby": Kind(
        ("What does {hero} love to do?", "What is the hobby of {hero}?"),
        lambda f, _: f.hobby,
        "{hero} loves to {answer}.",
    ),
    "place": Kind(
        ("Where are {hero} and {friend}?", "Where does the story happen?"),
        lambda f, _: f.at_place,
        "{hero} and {friend} are {answer}.",
    ),
    "colour": Kind(
        ("What colour is the {thing}?", "Which colour does the {thing} have?"),
        lambda f, _: f.colour,
        "The colour of the {thing} is {answer}.",
    ),
    "size": Kind(
        ("How big is the {thing}?", "What size is the {thing}?"),
        lambda f, _: f.size,
        "The size of the {thing} is {answer}.",
    ),
    "holder": Kind(
        ("Who has the {thing} at the end?", "Who has the {thing} now?"),
        lambda f, _: f.holder or "nobody",
        "The holder of the {thing} is {answer}.",
    ),
    "feeling": Kind(
        ("How does {name} feel at the end?", "What does {name} feel?"),
        lambda f, name: f.feelings.get(name),
        "{name} feels {answer}.",
    ),
    "found": Kind(
        ("Where was the {thing} found last?", "Where did they last find the {thing}?"),
        _found,
        "The {thing} was {answer}.",
    ),
    "count": Kind(
        ("How many animals or things do they count in the end?", "What number do they count to?"),
        _event_word("count", "total"),
        "They count to {answer}.",
    ),
    "food": Kind(
        ("What do they share to eat?", "What do they eat together?"),
        _event_word("food", "food", True),
        "They share {answer}.",
    ),
    "building": Kind(
        ("What do they build?", "What do {hero} and {friend} make?"),
        lambda f, _: next((e.words["building"].a for e in f.events if e.kind in ("build", "plan")), None),
        "They build {answer}.",
    ),
    "material": Kind(
        ("What do they build with?", "What is the building made of?"),
        lambda f, _: next((str(e.words["material"]) for e in f.events if e.kind in ("build", "plan")), None),
        "They build it from {answer}.",
    ),
    "trade": Kind(
        ("What is traded for the {thing}?", "What is the {thing} swapped for?"),
        _event_word("trade", "trinket", True),
        "The {thing} is swapped for {answer}.",
    ),
    "helped": Kind(
        ("Who needs help?", "Whom do they help?"), _event_word("help", "stranger"), "They help {answer}."
    ),
    # What no story ever says.
    "age": Kind(("How old is {name}?",), lambda f, _: None, "{name} is {answer}."),
    "family": Kind(
        ("What is the name of the sister of {name}?", "Who is the uncle of {name}?"),
        lambda f, _: None,
        "The name is {answer}.",
    ),
    "breakfast": Kind(("What did {name} have for breakfast?",), lambda f, _: None, "{name} had {answer}."),
}

ABOUT_A_PERSON = tuple(kind for kind, entry in KINDS.items() if "{name}" in entry.phrasings[0])
TRAIT_FRACTION = 0.75  # of the questions about what somebody is: the harder of the two
NEVER_TOLD = ("age", "family", "breakfast")
# Told in every story, or nearly.
ALWAYS_TOLD = ("hero", "friend", "species", "trait", "hobby", "place", "colour", "size", "holder")


class Statement(NamedTuple):
    """A yes/no question about `{value}`: true if the value is the one the facts give, drawn from `values` if not.

    The replies say what is so instead of "yes" or "no". A model can then read the story's word and the question's side by side: where
    they agree both vote for it, where they do not, for "not". So the word itself must come where the two forms part: after "with", "The ball
    is with Ruby." would come too late.
    """

    kind: str  # of the open question behind it
    about: str  # whom that one asks about: "hero" or "friend"
    phrasing: str
    truth: Callable[[Facts], str]
    values: Callable[[Facts], list[str]]
    yes: str  # with {value}
    no: str  # with {value} and {truth}


STATEMENTS = (
    Statement(
        "colour",
        "hero",
        "Is the {thing} {value}?",
        lambda f: f.colour,
        lambda f: list(COLOURS),
        "The colour of the {thing} is {value}.",
        "The colour of the {thing} is not {value}, but {truth}.",
    ),
    Statement(
        "trait",
        "hero",
        "Is {hero} {value}?",
        lambda f: f.hero_trait,
        lambda f: list(TRAITS),
        "{hero} the {hero_kind} is {value}.",
        "{hero} the {hero_kind} is not {value}, but {truth}.",
    ),
    Statement(
        "trait",
        "friend",
        "Is {friend} {value}?",
        lambda f: f.friend_trait,
        lambda f: list(TRAITS),
        "{friend} the {friend_kind} is {value}.",
        "{friend} the {friend_kind} is not {value}, but {truth}.",
    ),
    Statement(
        "place",
        "hero",
        "Are {hero} and {friend} {value}?",
        lambda f: f.at_place,
        lambda f: [place.at for place in PLACES],
        "{hero} and {friend} are {value}.",
        "{hero} and {friend} are not {value}, but {truth}.",
    ),
    Statement(
        "holder",
        "hero",
        "Does {value} have the {thing} at the end?",
        lambda f: f.holder or "nobody",
        lambda f: [f.hero, f.friend],
        "The holder of the {thing} is {value}.",
        "The holder of the {thing} is not {value}, but {truth}.",
    ),
)

# What else an answer of this kind could have been: the wrong choices, and the wrong answers of preference pairs.
POOLS: dict[str, Callable[[Facts], list[str]]] = {
    "hero": lambda f: [f.friend, *NAMES],
    "friend": lambda f: [f.hero, *NAMES],
    "holder": lambda f: [f.hero, f.friend, "nobody", *NAMES],
    "species": lambda f: list(ANIMALS),
    "trait": lambda f: list(TRAITS),
    "hobby": lambda f: list(HOBBIES),
    "place": lambda f: [place.at for place in PLACES],
    "colour": lambda f: list(COLOURS),
    "size": lambda f: list(SIZES),
    "feeling": lambda f: [word for words in FEELINGS.values() for word in words],
    "found": lambda f: [spot for place in PLACES for spot in place.spots],
    "count": lambda f: list(NUMBERS[2:]),
    "food": lambda f: [food.a for food in FOODS],
    "building": lambda f: [building.a for building in BUILDINGS],
    "material": lambda f: list(MATERIALS),
    "trade": lambda f: [trinket.a for trinket in TRINKETS],
    "helped": lambda f: list(STRANGERS),
}


def _fill(phrasing: str, facts: Facts, **words: str) -> str:
    if "name" in words:
        words["species"] = facts.kind_of(words["name"])
    return phrasing.format_map(vars(facts) | words)


def question_about(kind: str, facts: Facts, name: str, rng: random.Random) -> str:
    """A question of this kind, in one of its phrasings; `name` is the friend in question, where the kind is about one of the two."""
    return _fill(rng.choice(KINDS[kind].phrasings), facts, name=name)


def kinds_and_names(facts: Facts) -> list[tuple[str, str]]:
    """Every kind, with the names it can be about: either of the two, where the kind is about one of them."""
    return [
        (kind, name)
        for kind in KINDS
        for name in ((facts.hero, facts.friend) if kind in ABOUT_A_PERSON else (facts.hero,))
    ]


def repeats(facts: Facts, rng: random.Random) -> set[tuple[str, str]]:
    """The questions that a conversation leaves out, lest a fact comes twice: for each friend either the trait, whose reply contains both, or the species."""
    return {
        ("species" if rng.random() < TRAIT_FRACTION else "trait", name) for name in (facts.hero, facts.friend)
    }


def reply_with(kind: str, facts: Facts, name: str, answer: str | None) -> str:
    """The sentence that answers a question of this kind about `name`, whether it is right or wrong."""
    return DOES_NOT_SAY if answer is None else _fill(KINDS[kind].reply, facts, name=name, answer=answer)


def _verdict(statement: Statement, facts: Facts, value: str, truth: str | None = None) -> str:
    """The reply to whether it is `value`, where it is `truth` (by default what the facts say)."""
    truth = statement.truth(facts) if truth is None else truth
    return _fill(statement.yes if value == truth else statement.no, facts, value=value, truth=truth)


def read_question(question: str, facts: Facts) -> tuple[str, str] | None:
    """(kind, name) of a question that `questions` could draw for this story; yes/no questions have their own function."""
    for kind, entry in KINDS.items():
        for phrasing in entry.phrasings:
            for name in (facts.hero, facts.friend):
                if _fill(phrasing, facts, name=name) == question:
                    return kind, name
    return None


def answer(question: str, facts: Facts) -> str | None:
    """The right reply to a question that `questions` could draw for this story; `None` for any other."""
    if asked := read_question(question, facts):
        kind, name = asked
        return reply_with(kind, facts, name, KINDS[kind].answer(facts, name))
    if read := read_statement(question, facts):
        return _verdict(read[0], facts, read[1])
    return None


def read_statement(question: str, facts: Facts) -> tuple[Statement, str] | None:
    """The statement behind a yes/no question about this story, and its value."""
    for statement in STATEMENTS:
        for value in statement.values(facts):
            if _fill(statement.phrasing, facts, value=value) == question:
                return statement, value
    return None


def wrong_verdict(task: Task, rng: random.Random) -> str:
    """The wrong reply to a yes/no question: what is so denied, or what is not so affirmed."""
    facts, asked = task.story.facts, split_prompt(task.prompt)
    read = read_statement(asked[1], facts) if asked else None
    assert read is not None, f"not a yes/no question: {task.prompt!r}"
    statement, value = read
    candidates = [*statement.values(facts), *(["nobody"] if statement.kind == "holder" else [])]
    others = [other for other in candidates if other != value]
    is_so = value == statement.truth(facts)
    return _verdict(statement, facts, value, rng.choice(others) if is_so else value)


def question_prompt(text: str, question: str) -> str:
    """The prompt of a question; `split_prompt` is the inverse."""
    return f"{text}\nQuestion: {question}"


def split_prompt(prompt: str) -> tuple[str, str] | None:
    """(story, question) of a prompt with a question."""
    text, mark, question = prompt.rpartition("\nQuestion: ")
    return (text, question) if mark else None


def _open_question(story: Story, rng: random.Random, answerable: bool) -> Task:
    facts = story.facts
    name = rng.choice((facts.hero, facts.friend))
    told = {kind: known for kind, entry in KINDS.items() if (known := entry.answer(facts, name)) is not None}
    # Half of the unanswerable questions are about what no story ever says, half about what another story might say.
    untold = [kind for kind in KINDS if kind not in told and kind not in NEVER_TOLD]
    kinds = list(told) if answerable else (untold if untold and rng.random() < 0.5 else NEVER_TOLD)
    kind = rng.choice(kinds)
    question = question_about(kind, facts, name, rng)
    label = kind if answerable else "unanswerable"
    return Task(
        label, question_prompt(story.text, question), reply_with(kind, facts, name, told.get(kind)), story
    )


def yes_no_question(story: Story, statement: Statement, rng: random.Random, text: str | None = None) -> Task:
    """A yes/no question about the story, or about a part of its text; half of the time the answer is yes."""
    facts = story.facts
    truth, values = statement.truth(facts), statement.values(facts)
    true = rng.random() < 0.5 and truth in values
    value = truth if true else rng.choice([value for value in values if value != truth])
    question = _fill(statement.phrasing, facts, value=value)
    prompt = question_prompt(text or story.text, question)
    return Task("yes/no", prompt, _verdict(statement, facts, value), story)


def _any_question(story: Story, rng: random.Random) -> Task:
    """60 % with an answer in the story, 20 % yes/no, 20 % unanswerable."""
    draw = rng.random()
    return (
        yes_no_question(story, rng.choice(STATEMENTS), rng)
        if draw < 0.2
        else _open_question(story, rng, answerable=draw < 0.8)
    )


def ask_about(story: Story, rng: random.Random, count: int) -> list[Task]:
    """At most `count` questions about one story, all different; not a sample of `questions`.

    A sixth has no answer in the story, a quarter is yes/no, which is the hardest. The others go through what the story says,
    each kind once, or once for each of the two friends; rare kinds tend to come first, since they would
    otherwise hardly ever occur. No fact comes twice: its answer would stand in an earlier reply.
    """
    unanswerable, yes_no = (sum(rng.random() < share for _ in range(count)) for share in (1 / 6, 1 / 4))
    statements = rng.sample(STATEMENTS, min(yes_no, count - unanswerable, len(STATEMENTS)))
    tasks = [yes_no_question(story, statement, rng) for statement in statements]
    known = {(statement.kind, getattr(story.facts, statement.about)) for statement in statements}
    known |= {("species", name) for kind, name in known if kind == "trait"} | repeats(story.facts, rng)
    told = [task for asked, task in _told_questions(story, rng) if asked not in known]
    tasks += told[: count - unanswerable - len(tasks)]
    tasks += [_open_question(story, rng, answerable=False) for _ in range(unanswerable)]
    chosen = list({task.prompt: task for task in tasks}.values())
    rng.shuffle(chosen)
    return chosen


def _told_questions(story: Story, rng: random.Random) -> list[tuple[tuple[str, str], Task]]:
    """A question of each kind that the story answers, by kind and name; rare kinds tend to come first."""
    facts = story.facts
    tasks = []
    for kind, name in kinds_and_names(facts):
        known = KINDS[kind].answer(facts, name)
        if known is not None:
            question = question_about(kind, facts, name, rng)
            task = Task(
                kind, question_prompt(story.text, question), reply_with(kind, facts, name, known), story
            )
            tasks.append((rng.random() * (1.0 if kind in ALWAYS_TOLD else 0.4), (kind, name), task))
    return [(asked, task) for _, asked, task in sorted(tasks, key=lambda entry: entry[0])]


def questions(seed: int = 0, split: str = "train", world: StoryWorld | None = None) -> Iterator[Task]:
    """Questions without end, one a story: 60 % with an answer in the story, 20 % yes/no, 20 % unanswerable."""
    rng = random.Random(f"questions/{seed}/{split}")
    for story in (world or StoryWorld()).stories(seed, split):
        yield _any_question(story, rng)


def multiple_choice(
    seed: int = 0, split: str = "train", world: StoryWorld | None = None, choices: int = 4
) -> Iterator[MultipleChoice]:
    """Questions with the right answer among `choices`, at a uniformly drawn place."""
    rng = random.Random(f"multiple choice/{seed}/{split}")
    for story in (world or StoryWorld()).stories(seed, split):
        task = _open_question(story, rng, answerable=True)
        others = wrong_answers(task, rng, choices - 1)
        place = rng.randrange(choices)
        options = (*others[:place], task.reply, *others[place:])
        yield MultipleChoice(task.kind, task.prompt, task.reply, story, options, place)


def wrong_answers(task: Task, rng: random.Random, count: int) -> list[str]:
    """Different replies of the right kind that are wrong. Words of the story itself come first: they are the hardest to reject."""
    facts, asked = task.story.facts, split_prompt(task.prompt)
    known = read_question(asked[1], facts) if asked else None
    assert known is not None, f"not an open question: {task.prompt!r}"
    pool = {reply_with(known[0], facts, known[1], word): word for word in POOLS[task.kind](facts)}
    pool.pop(task.reply, None)
    tempting = [reply for reply, word in pool.items() if word in task.prompt]
    rest = [reply for reply, word in pool.items() if word not in task.prompt]
    drawn = [*rng.sample(tempting, min(len(tempting), count)), *rng.sample(rest, min(len(rest), count))][
        :count
    ]
    rng.shuffle(drawn)
    return drawn

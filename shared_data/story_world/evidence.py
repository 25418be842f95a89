"""Where in its prompt a question is answered: the letters that a reader must have seen to answer it.

The sentences that tell an answer come from `telling_sentences` (passages.py); in each of them the answer's own words are looked up.

    >>> task = next(questions(seed=0))
    >>> [task.prompt[start:end] for start, end in answer_spans(task)]
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from shared_data.story_world.facts import Facts
from shared_data.story_world.passages import telling_sentences
from shared_data.story_world.questions import KINDS, read_question, read_statement, split_prompt
from shared_data.story_world.records import Task
from shared_data.story_world.requests import sentences_of


def answer_spans(task: Task) -> list[tuple[int, int]]:
    """Spans of characters [start, end) of the prompt, each of which alone gives the answer.

    The words of the answer, or its last word ("park" for "in the park"), or, where the story says it in other words (nobody has the
    ball: "They never found the ball"), the whole sentence. None for a question that the story does not answer, and for a request.
    """
    parts = split_prompt(task.prompt)
    known = _known_answer(parts[1], task.story.facts) if parts else None
    if parts is None or known is None:
        return []
    kind, name, answer = known
    sentences = sentences_of(parts[0])
    starts = [0]
    for sentence in sentences:
        starts.append(starts[-1] + len(sentence) + 1)  # and the blank
    return [
        (starts[place] + start, starts[place] + end)
        for place in telling_sentences(kind, task.story.facts, name, answer, sentences)
        for start, end in _occurrences(answer, sentences[place])
    ]


def _known_answer(question: str, facts: Facts) -> tuple[str, str, str] | None:
    """The kind of a question, whom it is about, and the words of the right answer; None where the story has none."""
    if asked := read_question(question, facts):
        answer = KINDS[asked[0]].answer(facts, asked[1])
        return None if answer is None else (*asked, answer)
    if read := read_statement(question, facts):
        statement = read[0]
        return statement.kind, getattr(facts, statement.about), statement.truth(facts)
    return None


def _occurrences(answer: str, sentence: str) -> Iterator[tuple[int, int]]:
    """Where a sentence has the answer, whole words in any case; the whole sentence where it has none."""
    for words in (answer, answer.split()[-1]):
        found = [match.span() for match in re.finditer(rf"\b{re.escape(words)}\b", sentence, re.IGNORECASE)]
        if found:
            yield from found
            return
    yield 0, len(sentence)

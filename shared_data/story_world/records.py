"""The records of the tasks: a prompt, the right reply, and the story whose facts decide.

Every record is a frozen dataclass, drawn deterministically from (seed, split). Its story belongs to the split, so the
combinations of hero, place and thing in test records never occur in training records.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from shared_data.story_world.world import Story

DOES_NOT_SAY = "The story does not say."


@dataclass(frozen=True)
class Task:
    """A prompt and the reply that a good assistant gives."""

    kind: str  # of question or request: "colour", "count", "yes/no", "unanswerable", "words", …
    prompt: str
    reply: str
    story: Story = field(repr=False)

    @property
    def answerable(self) -> bool:
        return self.reply != DOES_NOT_SAY


@dataclass(frozen=True)
class MultipleChoice(Task):
    """`choices[answer]` is right; `reply` is its text. Choices are of one kind and all different."""

    choices: tuple[str, ...] = ()
    answer: int = 0


@dataclass(frozen=True)
class PreferencePair:
    """Two completions of one prompt; `reason` names what is wrong with the rejected one."""

    kind: str  # the kind of the task behind it
    prompt: str
    chosen: str
    rejected: str
    reason: str
    story: Story = field(repr=False)

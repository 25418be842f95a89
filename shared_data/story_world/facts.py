"""What is true in a story: the tracked state at its end, as the tasks and the reward need it.

>>> story = next(StoryWorld().stories(seed=1))
>>> story.facts.hero, story.facts.thing, story.facts.holder
('Nora', 'umbrella', 'Nora')
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shared_data.story_world.grammar import State
from shared_data.story_world.plot import Event


@dataclass(frozen=True)
class Facts:
    """Everything a story says, as words; `None` where it does not say."""

    hero: str
    hero_kind: str  # "girl", "boy" or an animal
    hero_trait: str
    hobby: str | None
    friend: str
    friend_kind: str
    friend_trait: str
    place: str
    at_place: str  # "in the park"
    thing: str
    colour: str
    size: str | None  # unknown while the thing is only wished for
    holder: str | None  # who has the thing at the end
    status: str  # of the thing at the end: "held", "lost", or "wished" (for, but never found)
    wished: bool  # the story began with the hero's wish for the thing
    plan: str | None  # what the hero wanted to build
    trinket: str | None
    first_spot: str | None  # where the thing was found, if the story begins with finding it
    feelings: Mapping[str, str]  # by name: the last feeling in the story
    events: tuple[Event, ...]

    def happened(self, kind: str) -> Event | None:
        """The event of this kind, if the story has one; each kind happens at most once."""
        return next((event for event in self.events if event.kind == kind), None)

    def kind_of(self, name: str) -> str:
        return self.hero_kind if name == self.hero else self.friend_kind

    def trait_of(self, name: str) -> str:
        return self.hero_trait if name == self.hero else self.friend_trait

    @property
    def told_words(self) -> tuple[str, ...]:
        """The words that belong to the events: what was found, built, shared, counted."""
        return tuple(str(word) for event in self.events for key, word in event.words.items() if key != "spot")

    @property
    def words(self) -> tuple[str, str, str]:
        """The combination that decides the split of the story."""
        return self.hero, self.place, self.thing


def facts_from_state(state: State) -> Facts:
    """Read the dictionary that `plot.py` kept; plain strings, so that facts compare and serialise like strings."""

    def word(key: str) -> str | None:
        return str(state[key]) if key in state else None

    names = {role: str(state[role]) for role in ("hero", "friend")}
    events = state["events"]
    return Facts(
        **{key: str(state[key]) for key in _ALWAYS},
        at_place=state["place"].at,
        hobby=word("hobby"),
        size=word("size"),
        trinket=word("trinket"),
        first_spot=state["first_spot"] and str(state["first_spot"]),
        holder=names.get(state["holder"] or ""),
        wished=state["wished"],
        plan=word("building") if state["had_plan"] else None,
        feelings={names[role]: str(state[f"{role}_feeling"]) for role in names if f"{role}_feeling" in state},
        events=events,
    )


_ALWAYS = (
    "hero", "hero_kind", "hero_trait", "friend", "friend_kind", "friend_trait", "place", "thing", "colour", "status",
)  # fmt: skip

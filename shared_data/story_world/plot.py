"""What happens next: the tracked state of a story and the rules that keep it consistent.

The state is a dictionary: who the `hero` and the `friend` are, the `place`, the main `thing` with its `colour` and
`size`, its `status` ("wished", "held" or "lost") and `holder`, how either one feels, which events have happened.
Every rule here is a function of the state that returns the segments to come (see `grammar.py`), so drawing a story,
reading one, and listing them all follow the same rules.

    opening: hero, hobby?, friend, setting, and how the main thing comes into the story
    events:  1 to 3 of those that the state allows, then the plan if there is one
    ending:  what became of the thing, farewell
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, NamedTuple

from shared_data.story_world import phrases
from shared_data.story_world.events import EVENTS
from shared_data.story_world.grammar import Choice, Depends, Segment, Slot, State, compile_template
from shared_data.story_world.lexicon import NUMBERS, Lexicon, Word
from shared_data.story_world.phrases import MACROS, Beat
from shared_data.story_world.splits import Combinations, silent

BY_STATUS = {
    "wished": ("find",),
    "held": ("play", "give", "trade", "hide", "lose", "mud", "share"),
    "lost": ("search", "return"),
}
ANY_TIME = ("food", "count", "build", "help", "fright")  # each at most once in a story
WEIGHTS = {"find": 5.0, "search": 3.0, "return": 3.0}
GO_ON = {1: 0.8, 2: 0.5}  # the probability of another event after so many
OTHER = {"hero": "friend", "friend": "hero"}
BEATS = (
    "HERO", "HOBBY", "FRIEND", "SETTING", "BRING", "FIND", "WISH", "PLAN",
    "HELD", "HELD_WISH", "LOST", "WANTED", "FAREWELL",
)  # fmt: skip


class Rule(NamedTuple):
    """What an event does to the state, beyond having happened."""

    words: tuple[str, ...] = ()  # the words of the state that tell what happened
    feels: str = "A"  # whose feeling the second beat may tell: {A}'s or {B}'s
    changes: Mapping[str, Any] = {}


RULES = {
    "find": Rule(("size", "colour", "thing", "spot"), changes={"status": "held", "holder": "A"}),
    "play": Rule(("thing",)),
    "give": Rule(("thing",), feels="B", changes={"holder": "B"}),
    "trade": Rule(("thing", "trinket"), changes={"holder": "B", "trinket_holder": "A"}),
    "hide": Rule(("thing", "spot")),
    "lose": Rule(("thing",), changes={"status": "lost", "holder": None, "owner": "A"}),
    "mud": Rule(("thing",)),
    "share": Rule(("thing",), feels="B"),
    "search": Rule(("thing", "spot"), changes={"status": "held", "holder": "A"}),
    "return": Rule(("thing", "spot"), feels="B", changes={"status": "held", "holder": "B"}),
    "food": Rule(("food",), feels="B"),
    "count": Rule(("number", "countable", "more_number", "total")),
    "build": Rule(("building", "material")),
    "plan": Rule(("building", "material"), changes={"planned": False}),
    "help": Rule(("stranger",)),
    "fright": Rule(),
}


class Event(NamedTuple):
    """Something that happened: `kind`, who did it, who else was there, and the words of it."""

    kind: str
    actor: Word
    other: Word
    words: dict[str, Any]


class Plot:
    """The rules of one world and one split; `start` and `new_state()` are what the interpreters of `grammar` need."""

    def __init__(
        self,
        lexicon: Lexicon,
        split: str,
        phrasings: int | None = None,
        events: Collection[str] = tuple(EVENTS),
        most_events: int = 3,
    ) -> None:
        self.phrasings, self.most_events = phrasings, most_events
        self.lists = {**lexicon.lists, "total": _total}
        self.beats = {name: self._beat(getattr(phrases, name)) for name in BEATS}
        self.deeds = {kind: tuple(map(self._beat, EVENTS[kind])) for kind in events}
        self.either: tuple[Segment, ...] = (Choice("who", [(), ()], None, "actor", ["hero", "friend"]), _cast)
        self.start = self._opening(lexicon, Combinations(lexicon, split))
        self._event_choices: dict[tuple[str, ...], Choice] = {}
        self._another = {
            count: Choice("another event", [(self._next_event,), (self._finish,)], [share, 1 - share])
            for count, share in GO_ON.items()
        }

    def new_state(self) -> State:
        return {
            "events": (),
            "status": "",
            "holder": None,  # "hero" or "friend"
            "owner": None,  # who lost the thing
            "planned": False,  # a plan is still to be carried out
            "had_plan": False,
            "wished": False,
            "first_spot": None,
        }

    # --- opening ---

    def _opening(self, lexicon: Lexicon, combinations: Combinations) -> tuple[Segment, ...]:
        """Who, with whom, where; then one of four ways in which the main thing comes into the story."""
        beats = self.beats
        friends = lexicon.lists["friend"].table
        beginnings: list[tuple[Segment, ...]] = [
            (*self.either, beats["BRING"], _holds),
            (*self.either, beats["FIND"], _holds),
            (beats["WISH"], _set(status="wished", wished=True)),
            (_set(actor="friend", planned=True, had_plan=True), _cast, beats["PLAN"], _holds),
        ]
        return (
            combinations.hero,
            beats["HERO"],
            beats["HOBBY"],
            Depends("hero", {hero: silent("friend", names) for hero, names in friends.items()}),
            " ",
            beats["FRIEND"],
            " ",
            Depends("hero", combinations.place),
            beats["SETTING"],
            " ",
            lambda state: (combinations.thing[state["hero"], state["place"]],),
            Choice("beginning", beginnings),
            self._go_on,
        )

    def _beat(self, beat: Beat) -> Choice:
        """The choice among the phrasings of a sentence. Only one that may be left out brings its own space."""
        branches = []
        for template in beat[: self.phrasings]:
            for macro, meaning in MACROS.items():
                template = template.replace(macro, meaning)
            segments = compile_template(template, self.lists, self.phrasings)
            branches.append((" ", *segments) if template and "" in beat else segments)
        return Choice("phrasing", branches)

    # --- events ---

    def _next_event(self, state: State) -> tuple[Segment, ...]:
        """One of the events that the state allows; each kind happens at most once."""
        happened = {event.kind for event in state["events"]}
        kinds = tuple(
            kind
            for kind in (*BY_STATUS[state["status"]], *ANY_TIME)
            if kind in self.deeds and kind not in happened and not (kind == "build" and state["planned"])
        )
        if kinds not in self._event_choices:
            branches = [(partial(self._happens, kind),) for kind in kinds]
            self._event_choices[kinds] = Choice("event", branches, [WEIGHTS.get(kind, 1.0) for kind in kinds])
        return (self._event_choices[kinds],)

    def _happens(self, kind: str, state: State) -> tuple[Segment, ...]:
        """Who does it follows from the state where the main thing is concerned, and is free otherwise."""
        state["feeling"] = None
        if kind in ANY_TIME or kind == "find":
            cast = self.either
        else:
            owner = state["owner"] if state["status"] == "lost" else state["holder"]
            state["actor"] = {"return": OTHER.get(owner), "plan": "hero"}.get(kind, owner)
            cast = (_cast,)
        deed, reaction = self.deeds[kind]
        return (*cast, " ", deed, " ", reaction, partial(_happened, kind), self._go_on)

    def _go_on(self, state: State) -> tuple[Segment, ...]:
        """Another event, or the finish; a story with a plan keeps its last event for it."""
        events = state["events"]
        count = len(events)
        if count == self.most_events or (events and events[-1].kind == "plan"):
            return self._ending(state)
        if state["planned"] and count == self.most_events - 1:
            return self._happens("plan", state)
        if count == 0:
            return self._next_event(state)
        return (self._another[count],)

    def _finish(self, state: State) -> tuple[Segment, ...]:
        return self._happens("plan", state) if state["planned"] else self._ending(state)

    # --- ending ---

    def _ending(self, state: State) -> tuple[Segment, ...]:
        """What became of the main thing follows from who has it."""
        status, holder = state["status"], state["holder"]
        if status == "held" and holder == "hero" and "find" in [event.kind for event in state["events"]]:
            fate = "HELD_WISH"
        else:
            fate = {"held": "HELD", "lost": "LOST", "wished": "WANTED"}[status]
        if status != "wished":
            state["actor"] = holder or state["owner"]
            _cast(state)
        return (" ", self.beats[fate], " ", self.beats["FAREWELL"])


# --- the rules that need no world: functions of the state, used as segments ---


def _set(**values: Any) -> Callable[[State], tuple[Segment, ...]]:
    def assign(state: State) -> tuple[Segment, ...]:
        state.update(values)
        return ()

    return assign


def _cast(state: State) -> tuple[Segment, ...]:
    """{A} is the one who acts, {B} the other."""
    state["A"], state["B"] = state[state["actor"]], state[OTHER[state["actor"]]]
    return ()


def _holds(state: State) -> tuple[Segment, ...]:
    state["status"], state["holder"], state["first_spot"] = "held", state["actor"], state.get("spot")
    return ()


def _total(state: State) -> tuple[Segment, ...]:
    """{total}: the sum of the two numbers drawn before."""
    state["total"] = NUMBERS[NUMBERS.index(state["number"]) + NUMBERS.index(state["more_number"])]
    return (Slot("total"),)


def _happened(kind: str, state: State) -> tuple[Segment, ...]:
    """Apply the rule of the event and remember it."""
    rule, role = RULES[kind], {"A": state["actor"], "B": OTHER[state["actor"]]}
    for key, value in rule.changes.items():
        state[key] = role.get(value, value)
    if state["feeling"] is not None:
        state[f"{role[rule.feels]}_feeling"] = state["feeling"]
    words = {key: state[key] for key in rule.words}
    state["events"] = (*state["events"], Event(kind, state["A"], state["B"], words))
    return ()

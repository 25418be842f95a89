"""The words of the world: who lives in it, where, with which things, and how they feel.

A word is a string that knows its other forms (`Word("park", at="in the park").at`), so that a template can use the
one that grammar needs. Sizes, colours and traits know their article, names know their pronouns, a place knows its hiding
spots, a thing knows what one does with it. `Lexicon.shrunk` keeps the first few words of each list: the small world,
whose every story can be written down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared_data.story_world.grammar import Given


class Word(str):
    """A string with other forms as attributes."""

    def __new__(cls, text: str, **forms: Any) -> Word:
        word = super().__new__(cls, text)
        article = "an" if text[0] in "aeiou" or text == "honest" else "a"
        word.__dict__.update(
            a=f"{article} {text}",
            A=f"{article.capitalize()} {text}",
            Up=text[0].upper() + text[1:],  # not capitalize(), which would lower the rest
            **forms,
        )
        return word

    def __getattr__(self, form: str) -> Any:
        raise AttributeError(f"the word {str(self)!r} has no form {form!r}")


def _name(text: str, he: str, him: str, his: str) -> Word:
    return Word(text, he=he, him=him, his=his, He=he.capitalize(), His=his.capitalize())


def _place(text: str, at: str, *spots: str) -> Word:
    return Word(text, the=f"the {text}", at=f"{at} the {text}", spots=tuple(map(Word, spots)))


def _stranger(a: str, he: str, problem: str, helped: str) -> Word:
    """Somebody in trouble: "a little bird" has "fallen out of its nest"; our friends have "lifted it back"."""
    noun = a.split()[-1]
    return Word(a, the=f"the {noun}", The=f"The {noun}", he=he, problem=problem, helped=helped)


def _words(text: str) -> tuple[Word, ...]:
    return tuple(map(Word, text.split()))


def _phrases(text: str) -> tuple[Word, ...]:
    return tuple(Word(" ".join(phrase.split())) for phrase in text.split(","))


BOYS = _words("Tim Ben Max Sam Leo Tom Finn Jack Oscar Noah Hugo Theo Milo Felix Otto Ravi")
GIRLS = _words("Lily Mia Anna Zoe Ella Nora Rosa Ruby Ida Clara Maya Lucy Emma Olga Tara Yuki")
NAMES = tuple(
    name
    for boy, girl in zip(BOYS, GIRLS, strict=True)
    for name in (_name(girl, "she", "her", "her"), _name(boy, "he", "him", "his"))
)
ANIMALS = _words(
    """rabbit fox bear mouse hedgehog squirrel duck kitten puppy frog turtle badger otter pony lamb goat mole
    beaver"""
)
TRAITS = _words(
    "kind brave shy curious clever gentle cheerful patient quiet funny honest lively careful generous friendly polite"
)
BUILDS = _words("young little tall small big tiny thin sturdy")
HOMES = _words("village town valley cottage castle farmhouse cabin city")
HOBBIES = _phrases(
    """sing songs, climb trees, draw pictures, read stories, dance, swim, jump in puddles, watch the clouds, tell jokes,
    pick flowers, ride a bicycle, chase butterflies, look at the stars, bake bread, play games, run races"""
)
WEATHER = _words(
    "sunny windy rainy cold warm cloudy bright misty quiet snowy lovely hot foggy cool dry stormy"
)
DAYPARTS = _words("morning afternoon evening")
WEEKDAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")

PLACES = (
    _place("park", "in", "under the bench", "behind the swings", "next to the fountain", "near the slide"),
    _place(
        "forest", "in", "under a fern", "behind the tall oak", "inside a hollow log", "next to the mushrooms"
    ),
    _place(
        "beach", "at", "under the pier", "behind the dunes", "between two rocks", "next to the rowing boat"
    ),
    _place(
        "garden", "in", "under the rose bush", "behind the shed", "between the cabbages", "next to the gate"
    ),
    _place(
        "farm", "on", "under the haystack", "behind the barn", "inside the henhouse", "next to the tractor"
    ),
    _place(
        "meadow", "in", "under the apple tree", "behind the fence", "in the tall grass", "next to the beehive"
    ),
    _place(
        "market",
        "at",
        "under a table",
        "behind the fish stall",
        "between two barrels",
        "next to the flower cart",
    ),
    _place(
        "lake", "by", "under the willow", "behind the reeds", "inside an old boat", "next to the lily pads"
    ),
    _place(
        "castle", "in", "under the stairs", "behind the throne", "inside a suit of armour", "next to the well"
    ),
    _place(
        "library", "in", "under the desk", "behind the curtain", "between two shelves", "next to the globe"
    ),
    _place(
        "school", "at", "under a chair", "behind the piano", "inside the cupboard", "next to the blackboard"
    ),
    _place(
        "harbour", "at", "under the nets", "behind the lighthouse", "inside a barrel", "next to the anchor"
    ),
    _place(
        "hill",
        "on",
        "under a flat stone",
        "behind the windmill",
        "inside a small cave",
        "next to the signpost",
    ),
    _place(
        "bakery",
        "in",
        "under the counter",
        "behind the oven",
        "between the flour sacks",
        "next to the scales",
    ),
)

# What one does with a thing: few verbs for many things, so that each is met often.
_VERBS = {
    ("play with", "played with"): "ball doll kite boat puppet robot balloon train top",
    ("play", "played"): "drum flute violin horn whistle bell",
    ("wear", "wore"): "hat scarf crown cape",
    ("look at", "looked at"): "book map clock mirror globe camera compass",
    ("carry", "carried"): "lantern umbrella basket blanket bucket rope box cup pillow torch",
}
THINGS = tuple(
    Word(noun, play=f"{play} the {noun}", played=f"{played} the {noun}")
    for (play, played), nouns in _VERBS.items()
    for noun in nouns.split()
)
SIZES = _words("tiny small little big large huge enormous giant")
COLOURS = _words("red blue green yellow orange purple pink white black brown golden silver")
THING_LOOKS = _words(
    "shiny old new lovely pretty strange plain simple dusty fancy bright fine lucky striped funny precious"
)
TRINKETS = _words("coin marble feather shell button pebble ribbon acorn spoon ring key candle")

FOODS = _phrases(
    """apple, cookie, sandwich, pear, pie, roll, cake, pancake, orange, carrot, muffin, banana, pretzel, peach, plum, bun"""
)
COUNTABLES = _words("ducks clouds ants birds butterflies snails frogs flowers boats bees rabbits lambs")
BUILDINGS = _words("tower bridge house raft castle nest tent wall snowman ship")
MATERIALS = _words(
    "sticks stones blocks leaves planks boxes branches shells bricks straw mud sand ropes logs corks twigs"
)
STRANGERS = (
    _stranger("a little bird", "it", "had fallen out of its nest", "lifted it back into the nest"),
    _stranger("an old man", "he", "could not open the gate", "pushed the gate until it opened"),
    _stranger("a farmer", "she", "had lost one of her sheep", "brought the sheep back to her"),
    _stranger("a tired donkey", "it", "could not pull its cart", "pushed the cart from behind"),
    _stranger("a baker", "he", "had spilled all his flour", "swept up the flour for him"),
    _stranger("a sailor", "she", "had a knot in her rope", "untied the knot for her"),
    _stranger("a hungry cat", "it", "could not reach its bowl", "moved the bowl closer to it"),
    _stranger("an old woman", "she", "had dropped all her eggs", "gathered new eggs for her"),
    _stranger("a young king", "he", "did not know the way home", "showed him the way home"),
    _stranger("a thirsty horse", "it", "could not find any water", "led it to a cool stream"),
    _stranger("a postman", "he", "had a flat tyre", "pumped up the tyre for him"),
    _stranger("a sleepy owl", "it", "was stuck in a thorn bush", "pulled it out of the bush"),
)

LOOKS = _words(
    "shiny round smooth old lucky pretty wooden strange heavy lovely precious simple dusty bent new curious"
)
TASTES = _words(
    "sweet fresh warm ripe tasty crunchy juicy soft sticky crisp big tiny round plain creamy golden"
)
GLAD_MANNERS = _words(
    "happily merrily proudly softly warmly gladly loudly brightly kindly gently quietly calmly"
)
MANNERS = _words(
    "happily quickly slowly quietly carefully proudly gently eagerly bravely kindly gladly calmly softly warmly merrily neatly"
)
SAYINGS = _words("said cried called shouted whispered laughed cheered sang")
SAD_SAYINGS = _words("said cried sobbed sighed whispered groaned wept moaned")
SAD_MANNERS = _words("slowly quietly sadly calmly gloomily wearily silently softly")
NOISES = _words("bang growl noise scream crash howl rumble whistle")
LOUDNESS = _words("loud strange terrible rough deep sharp low scary")
MOODS = _words(
    "busy good long strange great fine full special merry funny happy perfect quiet rare lively sunny"
)

NUMBERS = _words("zero one two three four five six seven eight nine ten")

FEELINGS: dict[str, tuple[Word, ...]] = {
    "joy": _words("happy glad delighted joyful merry cheerful pleased thrilled content lucky excited jolly"),
    "sorrow": _words("sad upset unhappy gloomy miserable sorry lonely hopeless"),
    "worry": _words("worried nervous anxious uneasy scared afraid frightened shaken"),
    "pride": _words("proud strong important clever brave grand useful great"),
    "thanks": _words("thankful grateful touched happy glad pleased lucky moved"),
}


@dataclass(frozen=True)
class Lexicon:
    """Lists of words by name; a `Given` is a list that depends on `state[key]`."""

    heroes: Sequence[Word]
    places: Sequence[Word]
    things: Sequence[Word]
    lists: Mapping[str, Any]

    @classmethod
    def full(cls) -> Lexicon:
        return cls._build(NAMES, PLACES, THINGS, None)

    @classmethod
    def shrunk(cls, combinations: int, words: int) -> Lexicon:
        """`combinations` heroes, places and things; the first `words` words of every other list."""
        return cls._build(NAMES[:combinations], PLACES[:combinations], THINGS[:combinations], words)

    @classmethod
    def _build(
        cls, heroes: Sequence[Word], places: Sequence[Word], things: Sequence[Word], words: int | None
    ) -> Lexicon:
        def kinds(name: Word) -> dict[Word, float]:
            """A child as often as all the animals together are six sorts of them."""
            child = Word("girl" if name.he == "she" else "boy")
            return {child: 8.0, **{Word(animal): 1.0 for animal in ANIMALS[:words]}}

        lists: dict[str, Any] = {
            "trait": TRAITS[:words],
            "build": BUILDS[:words],
            "thing_look": THING_LOOKS[:words],
            "home": HOMES[:words],
            "hobby": HOBBIES[:words],
            "weather": WEATHER[:words],
            "daypart": DAYPARTS[:words],
            "weekday": WEEKDAYS[:words],
            "look": LOOKS[:words],
            "taste": TASTES[:words],
            "manner": MANNERS[:words],
            "gladly": GLAD_MANNERS[:words],
            "said": SAYINGS[:words],
            "sobbed": SAD_SAYINGS[:words],
            "sadly": SAD_MANNERS[:words],
            "noise": NOISES[:words],
            "loud": LOUDNESS[:words],
            "mood": MOODS[:words],
            "size": SIZES[:words],
            "colour": COLOURS[:words],
            "trinket": TRINKETS[:words],
            "food": FOODS[:words],
            "countable": COUNTABLES[:words],
            "building": BUILDINGS[:words],
            "material": MATERIALS[:words],
            "stranger": STRANGERS[:words],
            "number": NUMBERS[2:7][:words],
            "more_number": NUMBERS[1:2][:words],
            **{feeling: words_of_it[:words] for feeling, words_of_it in FEELINGS.items()},
            "spot": Given("place", {place: place.spots[:words] for place in places}),
            "hero_kind": Given("hero", {name: kinds(name) for name in heroes}),
            "friend_kind": Given("friend", {name: kinds(name) for name in NAMES}),
            # One "he" and one "she": no pronoun is ever ambiguous.
            "friend": Given(
                "hero", {hero: [name for name in NAMES if name.he != hero.he][:words] for hero in heroes}
            ),
        }
        return cls(heroes, places, things, lists)

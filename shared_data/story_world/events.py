"""What can happen: for every event its beats, and for every beat its phrasings.

An event happens to `{A}`, who acts, and `{B}`, the other one. Each beat is one sentence; an empty phrasing means that
the beat may be left out. What an event needs and what it changes stands in `plot.py`. See `phrases.py` for the
template language.
"""

from shared_data.story_world.phrases import FIND, Beat

_JOY: Beat = (
    "<A> (was|felt) <very> [joy:feeling].",
    "This made {A} <very> [joy:feeling].",
    "<A> (smiled|laughed|clapped|jumped), feeling [joy:feeling].",
    "How [joy:feeling] {A} (was|felt)!",
    "<A> [gladly] (smiled|laughed|clapped) and (was|felt) [joy:feeling].",
    '"I am <very> [joy:feeling]," [said] {A}.',
)
_SORROW: Beat = (
    "<A> (was|felt) <very> [sorrow:feeling].",
    "This made {A} <very> [sorrow:feeling].",
    "<A> (cried|sighed|sat down), feeling [sorrow:feeling].",
    '"I am <very> [sorrow:feeling]," [sobbed] {A}.',
)
_WORRY: Beat = (
    "<A> (was|felt) <very> [worry:feeling].",
    "<A> (looked|grew|became) <very> [worry:feeling].",
    '"I am <very> [worry:feeling]," [sobbed] {A}.',
)
_PRIDE: Beat = (
    "<A> felt <very> [pride:feeling].",
    "<A> (smiled|stood tall|looked up), feeling [pride:feeling].",
    "It made {A} feel <very> [pride:feeling].",
)
_THANKS: Beat = (
    "<B> (was|felt) <very> [thanks:feeling].",
    "<B> (smiled|hugged {A}|took a bow), feeling [thanks:feeling].",
    '"I am <very> [thanks:feeling]," [said] {B}.',
    '"(Thank you|Thanks a lot|You are a true friend), {A}," [said] {B}, who (was|felt) [thanks:feeling].',
)


EVENTS: dict[str, tuple[Beat, ...]] = {
    # The main thing is still only a wish.
    "find": (
        tuple(phrasing.replace("<new>", "<wished>") for phrasing in FIND),
        (
            *_JOY,
            '"It is (just what I wanted|so beautiful|even better than I thought)!" [said] {A}.',
        ),
    ),
    # {A} has the main thing.
    "play": (
        (
            "{A} [manner] {thing.played} (again and again|for a long time|while {B} watched|all around {place.the}).",
            "{A} showed {B} how to {thing.play} (well|properly|just right|without any help).",
            '"(Watch me|Look how I|See me) {thing.play}," [said] {A}.',
            "First {A} {thing.played}, and then {B} {thing.played} (too|as well).",
        ),
        _JOY,
    ),
    "give": (
        (
            "{A} [manner] gave <the> to {B} (as a present|with a smile|because {B} liked it so much).",
            '"You may have my {thing}," [said] {A}, and [manner] gave it to {B}.',
            "{A} (thought|waited) for a (moment|while) and then [manner] gave {B} <the>.",
            "{B} (loved|admired|liked) <the> so much that {A} gave it to {B.him}.",
        ),
        _THANKS,
    ),
    "trade": (
        (
            "{B} had [look.a] [trinket], and {A} (traded|swapped) <the> for it.",
            '"I will give you my [trinket] for your {thing}," [said] {B}, and {A} [gladly] (agreed|said yes|nodded).',
            "{A} gave <the> to {B} and got [look.a] [trinket] (for it|in return|back).",
        ),
        (
            *_JOY,
            "Now {B} had <the>, and {A} had the {trinket}.",
        ),
    ),
    "hide": (
        (
            "{A} hid <the> [spot], and {B} [manner] (looked for|searched for|hunted for) it until {B.he} found it.",
            '"Close your eyes," said {A}, and hid <the> [spot], but {B} (soon|easily) found it.',
            "They played a game: {A} hid <the> [spot], and {B} had to find it (there|in the end).",
        ),
        (
            '"(Found it|Here it is|I have got it)!" [said] {B}, and gave the {thing} back.',
            "<B> (came back|danced about|ran up) and [manner] gave it to {A}.",
            "<A> took the {thing} back and (laughed|grinned|clapped).",
        ),
    ),
    "lose": (
        (
            "(But then|Then|Suddenly|A little later), {A} (could not find|lost|dropped and lost) <the>.",
            '"(Oh no|Oh dear), my {thing} is gone!" [sobbed] {A}.',
            "(But|Then) the (wind|river|rain) (carried|took|swept) <the> away from {A}.",
            "{A} put down <the> for a (moment|minute), and then it was (gone|nowhere to be seen|lost).",
        ),
        _SORROW,
    ),
    "mud": (
        (
            "{A} (tripped|slipped|stumbled), and <the> fell into (the mud|a puddle|the dirt).",
            "(Splash|Plop|Oh dear)! {A} dropped <the> into (the mud|a puddle|the dirt).",
            "{A} got <the> (all dirty|very dirty|covered with mud).",
        ),
        (
            "<B> [manner] helped {A} to (wash|clean|wipe) the {thing} until it was (like new|clean again|dry).",
            '"(Do not cry|Do not worry|Never mind)," [said] {B}, and [manner] (washed|cleaned|wiped) the {thing} for {A}.',
        ),
    ),
    "share": (
        (
            '"(Can|May) I have a turn?" asked {B}, and {A} (let {B.him}|said that {B.he} could) {thing.play}.',
            "{B} wanted to {thing.play} too, so {A} and {B} took turns.",
            "They (quarrelled over|argued about|both wanted) <the>, but then {A} let {B} {thing.play}.",
        ),
        _THANKS,
    ),
    # The main thing is lost; {A} finds it again.
    "search": (
        (
            "They (looked|searched) everywhere, and {A} found <the> [spot].",
            "{A} [manner] looked [spot], and there was <the>.",
            '"(Here it is|I can see it|I have found it)!" [said] {A}, pointing to <the> [spot].',
            "(After a long time|At last|Finally|Before long), {A} (found|saw|spotted) <the> [spot].",
        ),
        _JOY,
    ),
    "return": (
        (
            "{A} [manner] (looked|searched) [spot], found <the> and gave it back to {B}.",
            '"(Is this|Could this be|Look, is that) your {thing}?" asked {A}, who had found it [spot].',
            "It was {A} who (found|saw|spotted) <the> [spot] and (brought|gave|carried) it back to {B}.",
        ),
        _THANKS,
    ),
    # What may happen at any time.
    "food": (
        (
            "{A} (had|found|bought|pulled out) [taste.a] [food] and [gladly] shared it with {B}.",
            "{B} was hungry, so {A} [manner] gave {B.him} half of {A.his} [food].",
            '"(Would you like|Do you want) some of my [taste] [food]?" asked {A}, and {B} [gladly] (took a bite|said yes|nodded).',
            "They sat down to (share|eat) [taste.a] [food] that {A} had (brought|baked|bought).",
        ),
        (*_THANKS, "It (was|tasted) (good|lovely|very good|delicious|wonderful), and soon it was gone."),
    ),
    "count": (
        (
            "(Then|Next|A little later), {A} (saw|counted|spotted) [number] [colour:shade] [countable].",
            "{A} (stopped|sat down|stood still) to count the [countable] and counted [number].",
            '"(Look|See), there are [number] [colour:shade] [countable]!" [said] {A}.',
            "{A} (pointed at|waved to|watched) [number] [colour:shade] [countable].",
        ),
        (
            "Then [more_number] more came, so there were {total}.",
            '"And [more_number] more," said {B}, "so there are {total}."',
            "<B> saw [more_number] more, and that made {total}.",
        ),
    ),
    "build": (
        (
            "{A} and {B} [manner] (built|made) [building.a] from [material].",
            '"Let us build [building.a]," said {A}, and they [manner] (built|made) it from [material].',
            "{B} (built|made) [building.a] from [material] that {A} had (gathered|collected|brought).",
        ),
        _PRIDE,
    ),
    "plan": (
        (
            "(At last|Finally|Now), {A} and {B} [manner] (built|made) the {building} from [material].",
            "The {building} was (soon|quickly|finally) (built|made) from [material], just as {A} had (planned|hoped|wanted).",
        ),
        _PRIDE,
    ),
    "help": (
        (
            "They (met|saw|came upon) [stranger] who {stranger.problem}, so {A} [manner] {stranger.helped}.",
            "[stranger.Up] {stranger.problem}, and {A} [manner] {stranger.helped}.",
            '"(Can you|Please) help me," said [stranger] who {stranger.problem}, and {A} {stranger.helped}.',
        ),
        (
            '"Thank you," said {stranger.the}, and {A} felt [pride:feeling].',
            "{stranger.The} (thanked them|was safe now|could smile again), and {A} felt [pride:feeling].",
            "{stranger.The} (thanked|praised|cheered) {A} (kindly|warmly|many times).",
        ),
    ),
    "fright": (
        (
            "(Suddenly|Just then|All at once), {A} heard a [loud] [noise].",
            "(Suddenly|Just then|All at once), it (thundered|grew dark|began to hail|rained hard), and {A} (shivered|hid|ran away).",
        ),
        (
            *_WORRY,
            "But {B} (held {A.his} hand|stayed close|sang a song), and {A} was not [worry] any more.",
        ),
    ),
}

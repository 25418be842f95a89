"""The wording of stories: several phrasings for every beat of the opening and of the ending.

The template language is that of `grammar.compile_template`: `{…}` is what the state knows, `[…]` a draw that the state
keeps, `(…|…)` a draw of wording, and a few macros: `<new>` introduces the main thing ("a big red ball"), `<the>` names
it again. `{A}` is the one who acts, `{B}` the other. One of the two friends is a "he" and one a "she", so that every pronoun
has one possible antecedent, for a reader and for a small model. An empty phrasing means that the beat may be left out.
"""

MACROS = {
    "<new>": "[size.a] [thing_look] [colour] {thing}",
    "<wished>": "[size.a] [thing_look] {thing}",  # its colour was part of the wish
    "<the>": "the {thing}",
    "<The>": "The {thing}",
    "<A>": "({A}|{A.He})",  # at the beginning of a sentence about the one whom the last one was about
    "<B>": "({B}|{B.He})",
    "<very>": "(very|so|really|quite|rather|truly|simply|deeply)",
    "<time>": "[weather] (|[weekday] )[daypart]",
}

Beat = tuple[str, ...]

# Whoever is introduced is named first and described after, in one order. Where some stories put names before descriptions and others
# after them, a small model had to find two ways to tell who is who, and often found neither (shared_data/training/chat_data.md).
HERO: Beat = (
    "(Once upon a time|Long ago|Once|Many years ago), there (was|lived) {hero} the [hero_kind], [trait:hero_trait] and [build:hero_build].",
    "In a (little|small|quiet|pretty) [home], there lived {hero} the [hero_kind], [trait:hero_trait] and [build:hero_build].",
    "(This is a story about|Let me tell you about|Here is a tale of) {hero} the [hero_kind], [trait:hero_trait] and [build:hero_build].",
    "{hero} the [hero_kind], [trait:hero_trait] and [build:hero_build], (once lived|lived long ago) in a (little|small|quiet|pretty) [home].",
    "There (was once|once was|once lived) {hero} the [hero_kind], [trait:hero_trait] and [build:hero_build].",
    "(Everyone|Everybody) in the [home] (knew|liked|loved) {hero} the [hero_kind], [trait:hero_trait] and [build:hero_build].",
)
HOBBY: Beat = (
    "",
    "{hero.He} (loved|liked) to [hobby] (every day|all day long|in the [daypart:hobby_time]|after lunch|on [weekday:hobby_day]s).",
    "(Most of all|More than anything|Above all), {hero.he} (loved|liked) to [hobby].",
    "(Every|Each) [daypart:hobby_time], {hero.he} (went out|hurried outside|got up early) to [hobby].",
)
FRIEND: Beat = (
    "{hero.His} (best|closest|dearest|oldest) friend was {friend} the [friend_kind], [trait:friend_trait] and [build:friend_build].",
    "{hero.He} had a (good|close|dear|new) friend, {friend} the [friend_kind], [trait:friend_trait] and [build:friend_build].",
    "{friend} the [friend_kind], [trait:friend_trait] and [build:friend_build], (lived next door|lived nearby|was {hero.his} best friend).",
    "{hero.He} (often|always|mostly) played with {friend} the [friend_kind], [trait:friend_trait] and [build:friend_build].",
)
SETTING: Beat = (
    "(One|On a) <time>, {hero} and {friend} (went|walked|ran|hurried|came) to {place.the}.",
    "(One|On a) <time>, the two (friends|of them) (met|played|were) {place.at}.",
    "It was [weather.a] (|[weekday] )[daypart], and {hero} (took|brought|invited|followed) {friend} to {place.the}.",
    '"Let us go to {place.the}," [said] {hero} (one|on a) <time>.',
)

# How the main thing comes into the story: somebody has it, somebody finds it, or the hero wishes for it. In the fourth
# kind of story the hero has a plan as well, and will have carried it out before the end.
BRING: Beat = (
    "{A} had <new> with {A.him}.",
    "{A} (carried|was carrying|was holding|held) <new> (under one arm|very carefully|in both hands|up high).",
    "{A} had brought <new> (from home|along|to show {B}).",
    "In {A.his} (bag|basket|backpack), {A} had <new>.",
    '"Look what I (have|got|brought)," [said] {A}, and showed {B} <new>.',
)
FIND: Beat = (
    "(Soon|Suddenly|There|After a while), {A} (found|spotted|discovered|picked up) <new> [spot].",
    "{A} looked [spot] and (found|spotted|discovered|picked up) <new>.",
    '"Come and look [spot]," [said] {A}, who had (found|seen|spotted) <new>.',
    "[spot.Up] (was|lay|stood) <new>, and {A} [manner] picked it up.",
)
WISH: Beat = (
    "{hero} (had always wanted|wished for|dreamed of|longed for) [colour.a] {thing}.",
    "More than anything, {hero} (wanted|wished for) [colour.a] {thing}.",
    '"I wish I had [colour.a] {thing}," (said|sighed|whispered) {hero}.',
    "{hero} (hoped|wanted) to find [colour.a] {thing} (there|that day|at last).",
)
PLAN: Beat = (
    "{A} had brought <new>, and {hero} (wanted|planned|hoped) to build [building.a].",
    '"Today I (want to|will) build [building.a]," [said] {hero}, while {A} (put down|held|carried) <new>.',
)

# Endings: the first beat says what became of the main thing, the second says farewell.
HELD: Beat = (
    "(In the end|At last|When it got dark|When the sun went down), {A} [manner] (took|carried|brought) <the> home.",
    "{A} (kept|looked after|took care of) <the> (for many years|from then on|all summer long|ever after).",
    "That night, {A} [manner] put <the> (next to {A.his} bed|on the shelf|under {A.his} bed|by the window).",
    "{B} said that {A} (should|could) keep <the>, and {A} [gladly] (smiled|agreed|nodded).",
)
HELD_WISH: Beat = (
    "(At last|Now), {hero} had the {thing} {hero.he} had (wished for|dreamed of|wanted).",
    "{hero.His} wish had come true, and {hero} [manner] (carried|took|brought) the {thing} home.",
)
LOST: Beat = (
    "They (never found|did not find|could not find) <the>, but they still had (each other|a good time|one another).",
    "<The> (was gone for ever|stayed lost|was never seen again), and {A} [sadly] went home without it.",
    '"(It is only a {thing}|We will look again tomorrow)," said {B}, and {A} (felt a little better|stopped crying|tried to smile).',
)
WANTED: Beat = (
    "{hero} did not find {thing.a} that day, but {hero.he} (kept hoping|did not give up|would try again).",
    '"(Maybe tomorrow|Another day|Some day) we will find your {thing}," said {friend}, and {hero} [sadly] (nodded|smiled|agreed).',
    "There was no {thing} (anywhere|to be found), but {hero} (had a friend|was not alone|had fun anyway).",
)
FAREWELL: Beat = (
    "{hero} and {friend} [gladly] (walked|went|skipped|ran) home (together|hand in hand|before supper|side by side).",
    "It had been a [mood] day for {hero} and {friend}.",
    "{hero} and {friend} (stayed|were|remained) (good|best|close) friends (for ever|from that day on|for the rest of their lives).",
    "They (never forgot|told everyone about|laughed about|often talked about) that [mood] day.",
    "And {hero} was the (kindest|luckiest|happiest|most loved) of (all|them all|everybody).",
    '"(See you tomorrow|Good night|Sleep well), {friend}," [said] {hero}.',
    "In bed, {hero} dreamed of [colour:dream_colour] [countable:dream].",
    "For supper, they had [taste.a:supper_taste] [food:supper] and [taste.a:other_taste] [food:other_supper].",
)

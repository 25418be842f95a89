"""The prompts of samples where the settings name none: those of the story world, or the beginnings of held-out documents.

A model of Chinese or of law has nothing to say after "Once upon a time". So a user's corpus gives its own first words, from the
validation split, which no training sees.

    sample_prompts(run.settings, run)    # the stage `generate`
    example_prompt(run)                  # for a command to try
"""

from itertools import islice

from shared_data.cleaning.words import are_characters, split_words
from shared_data.corpus.splits import read_documents
from shared_data.errors import UserError
from shared_data.runs import RunFolder
from shared_data.settings import Settings

STORY_PROMPTS = ["Once upon a time", "One day,", ""]
STORY_SAMPLE = "Once"  # of the samples during pretraining
_PROMPTS = 3
_DOCUMENTS = 50  # are looked at, since many may begin alike
_WORDS, _CHARACTERS = 4, 6  # of a beginning


def sample_prompts(settings: Settings, run: RunFolder) -> list[str]:
    """The prompts of the stage `generate`."""
    if settings.generate.prompts is not None:
        return settings.generate.prompts
    return _beginnings(settings, run) or STORY_PROMPTS


def pretraining_prompt(settings: Settings, run: RunFolder) -> str:
    """What the samples during pretraining continue."""
    if settings.pretrain.sample_prompt is not None:
        return settings.pretrain.sample_prompt
    return (_beginnings(settings, run) or [STORY_SAMPLE])[0]


def example_prompt(run: RunFolder) -> str:
    """A prompt for a command that a user may try."""
    return next(filter(str.strip, sample_prompts(run.settings, run)), STORY_PROMPTS[0])


def beginning(text: str) -> str:
    """The first words of a text, or the first characters where a script has no spaces.

    >>> beginning("It was the best of times."), beginning("话说天下大势，分久必合")
    ('It was the best', '话说天下大势')
    """
    line = next(filter(str.strip, text.split("\n")), "").strip()
    units = split_words(line)
    end = 0
    for unit in units[: _CHARACTERS if are_characters(units) else _WORDS]:
        end = line.index(unit, end) + len(unit)
    return line[:end]


def _beginnings(settings: Settings, run: RunFolder) -> list[str]:
    """Of the first held-out documents of a user's corpus, those that differ; none where the stage `data` has not run."""
    path = run.path / "data" / "validation.jsonl"
    if settings.data.source == "story_world" or not path.is_file():
        return []
    try:
        texts = [document.text for document in islice(read_documents(path), _DOCUMENTS)]
    except (UserError, OSError):  # the stages say what is wrong with it
        return []
    return list(dict.fromkeys(filter(None, map(beginning, texts))))[:_PROMPTS]

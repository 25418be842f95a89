"""Clean documents: ftfy repairs the encoding; markup, invisible characters, whitespace and filters are those of all levels.

ftfy undoes mojibake and repairs surrogates, line ends, terminal colours and Unicode forms. It knows no HTML and leaves characters
without width, so these repairs are the shared ones. Theory: `shared_data/cleaning/cleaning.md`.

    uv run python -c "from v1_quick.data_pipeline.processing.cleaning import fix_encoding; print(fix_encoding('cafÃ© and naÃ¯ve'))"
"""

from collections.abc import Collection

import ftfy

from shared_data.cleaning.cleaning import Cleaner
from shared_data.cleaning.repair import normalize_whitespace, remove_control_characters, strip_markup
from shared_data.settings import CleaningSettings


def fix_encoding(text: str) -> str:
    """The text as it was meant; letters, quotes and ligatures that are right stay as they are."""
    return ftfy.fix_text(
        text, unescape_html=False, uncurl_quotes=False, fix_latin_ligatures=False, fix_character_width=False
    )


REPAIRS = {
    "mojibake": fix_encoding,
    "markup": strip_markup,
    "control_characters": remove_control_characters,
    "whitespace": normalize_whitespace,
}


def new_cleaner(settings: CleaningSettings, languages: Collection[str] | None = None) -> Cleaner:
    """A cleaner with these repairs, which keeps documents of these languages (None: of all)."""
    return Cleaner(settings, languages, REPAIRS)

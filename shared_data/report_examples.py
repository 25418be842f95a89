"""Examples in the report: a prompt as its reader needs it, story first, with the completions of it below.

example(prompt, [("right answer", "The story is about Ella."), ("model", "This is Ella.")])
"""

from collections.abc import Iterable, Sequence

from shared_data import report_html as html
from shared_data.generated_text import NO_CHARACTER, readable
from shared_data.progress import format_metric
from shared_data.story_world.questions import split_prompt


def example(prompt: str, rows: Sequence[Sequence[str]], head: Sequence[str] = ()) -> str:
    """A prompt, its question in bold below the story, and a table; the second column of the table is what a model wrote."""
    asked = split_prompt(prompt)
    shown = html.quote(f"\nQuestion: {asked[1]}", asked[0], bold="text") if asked else html.quote("", prompt)
    shown_rows = [[label, readable(text), *others] for label, text, *others in rows]
    return shown + html.table(shown_rows, head) + note_on(row[1] for row in shown_rows)


def note_on(texts: Iterable[str]) -> str:
    """What the sign of unfinished characters means, where one of the texts has it."""
    found = any(NO_CHARACTER in text for text in texts)
    return html.paragraph(f"{NO_CHARACTER} stands for bytes that make no character.", "soft") if found else ""


def rewarded(label: str, record: dict, moment: str) -> list[str]:
    """A row with the completion `before` or `after`, and its reward."""
    reward = record[f"{moment}_reward"]
    return [label, record[moment], "none" if reward is None else format_metric("reward", reward)]

"""The items of a benchmark, by how a model answers them. Each knows its requests to the model, and how it reads as an example (a shot).

| item | lm-evaluation-harness calls it | a model answers with |
|---|---|---|
| `MultipleChoiceItem` | multiple_choice | the log-likelihood of each choice |
| `ContinuationItem` | loglikelihood | the log-likelihood of one continuation, and whether it is the greedy one |
| `PerplexityItem` | loglikelihood_rolling | the log-likelihood of a whole text |
| `GenerationItem` | generate_until | text |

    MultipleChoiceItem({}, "Question: Is ice cold?\\nAnswer:", ("no", "yes"), gold=1).requests(lambda question: question, " ")
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

Record = dict[str, Any]
Prompt = Callable[
    [str], str
]  # from a question to the whole context: description and shots before it, or a chat


class Request(NamedTuple):
    """How probable is this continuation after this context?"""

    context: str
    continuation: str


@dataclass(frozen=True)
class MultipleChoiceItem:
    """`choices[gold]` is right. With an `ending`, the choices are beginnings, and the ending is scored after each (WinoGrande)."""

    doc: Record
    context: str
    choices: tuple[str, ...]
    gold: int
    ending: str | None = None

    @property
    def target(self) -> int:
        """What the right answer is, as the per-item results say it."""
        return self.gold

    def shot(self) -> tuple[str, str]:
        """The question and the right answer."""
        choice = self.choices[self.gold]
        return (self.context, choice) if self.ending is None else (choice, self.ending)

    def requests(self, prompt: Prompt, delimiter: str) -> list[Request]:
        """One for each choice; the delimiter stands between question and answer."""
        if self.ending is not None:
            return [Request(prompt(choice), delimiter + self.ending) for choice in self.choices]
        return [Request(prompt(self.context), delimiter + choice) for choice in self.choices]


@dataclass(frozen=True)
class ContinuationItem:
    """A text without its end, and the end, its first space included (LAMBADA)."""

    doc: Record
    context: str
    target: str

    def shot(self) -> tuple[str, str]:
        return self.context, self.target

    def requests(self, prompt: Prompt, delimiter: str) -> list[Request]:
        return [Request(prompt(self.context), self.target)]


@dataclass(frozen=True)
class PerplexityItem:
    """A text that is scored whole, whatever its length."""

    doc: Record
    target: str

    context = ""

    def requests(self, prompt: Prompt, delimiter: str) -> list[Request]:
        return [Request("", self.target)]


@dataclass(frozen=True)
class GenerationItem:
    """A question that is answered with text of the model's own, and the right answer."""

    doc: Record
    context: str
    target: str

    def shot(self) -> tuple[str, str]:
        return self.context, self.target

    def requests(self, prompt: Prompt, delimiter: str) -> list[Request]:
        return [Request(prompt(self.context), "")]


Item = MultipleChoiceItem | ContinuationItem | PerplexityItem | GenerationItem

"""How the next token is chosen: the sampling arguments of `generate`, in one place, checked.

Names, meaning and ranges are transformers'; `presence_penalty`, `frequency_penalty` and `logit_bias` are OpenAI's and vLLM's. What each
does to the logits stands in `inference/sampling.py`, `penalties.py` and `beam_search.py` of levels 2 and 3; level 1 hands them to the library.

    uv run python -c "from shared_data.inference.sampling_parameters import *; print(SamplingParameters(temperature=0.7, min_p=0.1))"
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from shared_data.errors import UserError
from shared_data.inference.arguments import check_sampling

MOST_BEAMS = 1000
LARGEST_LENGTH_PENALTY = 50  # its power of a length of 10^5 is still a float
NOT_FINITE = "the model gives no finite numbers for the next token; a weight, or a bias of its generation_config.json, is damaged: copy them again"
NO_TOKEN_LEFT = "no_repeat_ngram_size and logit_bias forbid every token; allow some, or write less"


@dataclass(frozen=True)
class SamplingParameters:
    """The defaults change nothing: greedy decoding of the model's own logits. Raises `UserError` for a value outside of its range.

    temperature           divides the logits; 0 is greedy
    top_k                 keep the k most probable tokens
    top_p                 keep the fewest tokens that have this probability together
    min_p                 keep tokens that are at least this fraction as probable as the most probable one
    typical_p             keep the tokens whose surprise is closest to the entropy, up to this probability together
    repetition_penalty    divides positive logits of the tokens so far, prompt included, and multiplies negative ones; 1 changes nothing
    presence_penalty      is subtracted from the logit of each token generated so far
    frequency_penalty     the same, times how often the token was generated
    no_repeat_ngram_size  no n tokens in a row come twice, prompt included; 0 allows it
    logit_bias            id -> what is added to its logit; -inf forbids it
    num_beams             width of the beam search; 1 is none
    length_penalty        power of its length that divides the log-probability of a finished beam
    early_stopping        True: stop at num_beams finished beams; False: when no beam is ahead of them; "never": when none can get ahead
    stop_strings          texts that end a sequence
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    logit_bias: Mapping[int, float] | None = None
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    stop_strings: Sequence[str] | str | None = None

    def __post_init__(self) -> None:
        # Greedy decoding divides by nothing, but what else is wrong is wrong there, too.
        check_sampling(self.temperature if self.temperature != 0 else 1, self.top_k, self.top_p)
        check_filters(self.min_p, self.typical_p)
        self._check_penalties()
        self._check_beams()
        if not all(isinstance(text, str) and text for text in self.stop_list):
            raise UserError(
                f"stop_strings is {self.stop_strings!r:.60}; pass a list of texts that are not empty"
            )

    def _check_penalties(self) -> None:
        if not (_is_finite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise UserError(
                f"repetition_penalty {self.repetition_penalty!r:.60} is not above 0; 1 changes nothing, 1.1 is common"
            )
        for name in ("presence_penalty", "frequency_penalty"):
            if not _is_finite(getattr(self, name)):
                raise UserError(f"{name} {getattr(self, name)!r:.60} is no finite number; choose one, as 0.5")
        if not isinstance(self.no_repeat_ngram_size, Integral) or self.no_repeat_ngram_size < 0:
            raise UserError(
                f"no_repeat_ngram_size {self.no_repeat_ngram_size!r:.60} is no integer of at least 0; 3 is common, 0 allows all"
            )
        for id, bias in (self.logit_bias or {}).items():
            if not isinstance(id, Integral) or not isinstance(bias, Real) or not bias < math.inf:
                raise UserError(
                    f"logit_bias has {id!r:.40}: {bias!r:.40}; map ids to finite numbers, or to -inf to forbid them"
                )

    def _check_beams(self) -> None:
        if not isinstance(self.num_beams, Integral) or self.num_beams < 1:
            raise UserError(f"num_beams {self.num_beams!r:.60} is no integer above 0; 1 is no beam search")
        if self.num_beams > MOST_BEAMS:
            raise UserError(
                f"num_beams {self.num_beams!s:.60} is above {MOST_BEAMS:,}, and each beam has its own key-value cache; 4 is common"
            )
        if not _is_finite(self.length_penalty) or abs(self.length_penalty) > LARGEST_LENGTH_PENALTY:
            raise UserError(
                f"length_penalty {self.length_penalty!r:.60} is not between -{LARGEST_LENGTH_PENALTY} and {LARGEST_LENGTH_PENALTY}; "
                "1 is the mean log-probability, more prefers long texts"
            )
        if self.num_beams > 1 and self.temperature != 0:
            raise UserError(
                f"{self.num_beams} beams with temperature {self.temperature} would be beam sampling, which is not computed; "
                "set temperature to 0, or num_beams to 1"
            )
        if self.early_stopping not in (True, False, "never"):
            raise UserError(
                f'early_stopping {self.early_stopping!r:.60} is not known; choose true, false or "never"'
            )

    def check_ids(self, vocab_size: int) -> None:
        """Raise `UserError` for a biased id that the model has not."""
        for id in self.logit_bias or {}:
            if not 0 <= id < vocab_size:
                raise UserError(
                    f"logit_bias has the id {id}, and the model's ids are 0 to {vocab_size - 1}; use ids of its tokenizer"
                )

    @property
    def stop_list(self) -> list[str]:
        """The stop strings as a list; transformers takes a single one, too."""
        texts = self.stop_strings or []
        return [texts] if isinstance(texts, str) else list(texts)

    @property
    def has_penalties(self) -> bool:
        """Whether something changes the logits before they are filtered or the largest is taken."""
        penalties = (self.repetition_penalty != 1, self.presence_penalty, self.frequency_penalty)
        return any(penalties) or self.no_repeat_ngram_size > 0 or bool(self.logit_bias)


def check_filters(min_p: float | None, typical_p: float | None) -> None:
    """Raise `UserError` for a parameter outside of its range."""
    if min_p is not None and not (_is_finite(min_p) and 0 <= min_p <= 1):
        raise UserError(f"min_p {min_p!r:.60} is not in [0, 1]; 0.05 is common, and 0 keeps every token")
    if typical_p is not None and not (_is_finite(typical_p) and 0 < typical_p <= 1):
        raise UserError(f"typical_p {typical_p!r:.60} is not in (0, 1]; 0.9 is common, 1 keeps every token")


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and math.isfinite(value)

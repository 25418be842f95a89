"""What a `generation_config.json` may say: the tokens that begin and end a text, and how the model asks to be sampled.

uv run python -c "from shared_data.model_files.generation_schema import *; print(GenerationConfig.read({'eos_token_id': [2, 7]}, 'a.json').ids())"
"""

from typing import Annotated, Any

from pydantic import Strict

from shared_data.foreign_json import ForeignJson, TokenId
from shared_data.model_files.config_schema import Count, NamedId

Bias = Annotated[tuple[list[TokenId], float], Strict(False)]  # JSON has lists only


class GenerationConfig(ForeignJson):
    """The entries that are read; null is as if there were none. Whether the values make sense together, the settings decide."""

    bos_token_id: NamedId | None = None
    eos_token_id: NamedId | list[NamedId] | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: Count | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: Count | None = None
    num_beams: Count | None = None
    length_penalty: float | None = None
    early_stopping: bool | str | None = None
    stop_strings: str | list[str] | None = None
    sequence_bias: list[Bias] | None = None

    def ids(self) -> dict[str, Any]:
        """The tokens that begin and end a text, where the file names them."""
        named = {"bos_token_id": self.bos_token_id, "eos_token_id": self.eos_token_id}
        return {name: id for name, id in named.items() if id is not None}

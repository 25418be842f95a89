"""What the JSON files of a run say, for those that were damaged by hand or written by another version of this project.

Each class is one file, which `read_state` reads with it; the stage that writes it writes it anew.

    uv run python -c "from shared_data.state_schema import *; print(read_state(Path('runs/v2/tiny/tokenizer/train.json'), TokenFacts, 'tokenizer'))"
"""

from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

from pydantic import Field

from shared_data.files import read_json
from shared_data.foreign_json import ForeignJson, TokenId

Natural = Annotated[int, Field(ge=0, lt=2**63)]


class TokenFacts(ForeignJson):
    """Beside a token file."""

    dtype: Literal["uint16", "uint32"]
    tokens: Natural
    documents: Natural = 0
    bytes: Natural
    vocab_size: Natural
    end_of_text_id: TokenId | None = None
    log2_probability: float | None = None


class FinishedRecord(ForeignJson):
    """finished.json of a stage."""

    id: str
    inputs: dict[str, Any]
    outputs: dict[str, Natural]
    metrics: dict[str, float]


class _DataState(ForeignJson):
    epoch: Natural = 0
    position: Natural = 0


class TrainingRecord(ForeignJson):
    """training_state.json of a checkpoint."""

    fingerprint: str
    step: Natural
    tokens: Natural
    seconds: float
    data: _DataState
    loss_scaler: dict[str, float]


class _Sample(ForeignJson):
    prompt: str
    text: str


class Samples(ForeignJson):
    """samples.json of the stage `generate`."""

    records: list[_Sample]


class _Completion(ForeignJson):
    prompt: str
    before: str
    before_reward: float | None
    after: str
    after_reward: float | None


class Completions(ForeignJson):
    """completions.json of an alignment stage."""

    records: list[_Completion]


class _Answer(ForeignJson):
    kind: str
    prompt: str
    expected: str
    reply: str


class Answers(ForeignJson):
    """answers.json of the stage `sft`."""

    before: list[_Answer]
    after: list[_Answer]


class Accuracy(ForeignJson):
    """accuracy.json of the stage `reward`: how many pairs of each flaw are in the right order, and how many there are."""

    records: dict[str, Annotated[list[Natural], Field(min_length=2, max_length=2)]]


class Losses(ForeignJson):
    """loss_by_position.json of the stage `evaluate`."""

    records: list[float]


class _Cleaning(ForeignJson):
    examples: dict[str, list[str]] = Field(default_factory=dict)


class _Duplicate(ForeignJson):
    kind: str
    similarity: float
    text: str


class _Deduplication(ForeignJson):
    examples: list[_Duplicate] = Field(default_factory=list)


class DataReport(ForeignJson):
    """report.json of the stage `data`."""

    cleaning: _Cleaning = _Cleaning()
    deduplication: _Deduplication = _Deduplication()


class _LayerOfExperts(ForeignJson):
    layer: Natural
    bits: float
    most_bits: float
    bits_by_chance: float
    load: list[float]
    shares: dict[str, list[float]]


class ExpertReading(ForeignJson):
    """experts.json of the stage `pretrain`."""

    tokens: Natural
    stories: Natural
    kinds: dict[str, Natural]
    layers: list[_LayerOfExperts]


class Scores(ForeignJson):
    """scores.json of the stage `benchmark`."""

    tasks: dict[str, dict[str, float | None]]


def read_state(path: Path, kind: type[ForeignJson], stage: str) -> Any:
    """The content of a file; raises `UserError` that names what is wrong with it, and the stage that writes it."""
    remedy = f"run the stage `{stage}` again with --force"
    records = kind.model_fields.get(
        "records"
    )  # the whole content, where it is not an object of fixed entries
    content = read_json(path, list if records and get_origin(records.annotation) is list else dict)
    kind.read({"records": content} if records else content, path, remedy)
    return content

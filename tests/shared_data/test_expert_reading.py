"""Which expert reads what: mutual information by hand, counts, a router that is known, the file, and the section of the report."""

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared_data.evaluation.expert_reading import (
    count_assignments,
    mutual_information,
    read_experts,
    shuffled_information,
    write_expert_reading,
)
from shared_data.files import read_json, write_json
from shared_data.finished import write_finished
from shared_data.metrics_log import MetricsLog
from shared_data.model_files.config import ModelConfig
from shared_data.report import write_report
from shared_data.runs import RunFolder
from shared_data.settings import load_settings
from shared_data.story_world.segments import spans_of
from shared_data.story_world.world import StoryWorld
from shared_data.training.expert_load import load_metrics


class _Bytes:
    """A tokenizer of one token a byte."""

    byte_lengths = np.ones(256, dtype=np.int64)

    def encode(self, text: str, allow_special: bool = True) -> list[int]:
        return list(text.encode())


class _Model:
    def __init__(self, **settings: Any) -> None:
        experts = {"model_type": "qwen3_moe", "num_hidden_layers": 3, "num_local_experts": 4}
        sizes = {
            "vocab_size": 256,
            "hidden_size": 8,
            "num_attention_heads": 2,
            "max_position_embeddings": 4096,
        }
        self.config = ModelConfig(**(sizes | experts | settings))


def by_letter(model: _Model, ids: Sequence[int]) -> np.ndarray:
    """Capital letters to experts 0 and 1, others to 2 and 3; the second layer sends all tokens to 0 and 3."""
    capital = (np.array(ids) >= ord("A")) & (np.array(ids) <= ord("Z"))
    first = np.where(capital[:, None], [0, 1], [2, 3])
    return np.stack([first, np.broadcast_to([0, 3], first.shape)])


def test_information_is_all_or_nothing_or_between() -> None:
    assert mutual_information(np.array([[2, 0], [0, 2]])) == 1.0
    assert mutual_information(np.array([[1, 3], [2, 6]])) == pytest.approx(0.0, abs=1e-15)
    # 1 bit for a fair choice of the expert, less H(1/4) = 0.811 that its kind leaves open.
    assert mutual_information(np.array([[3, 1], [1, 3]])) == pytest.approx(1 - 0.811278, abs=1e-6)


def test_each_token_counts_once_for_each_of_its_experts() -> None:
    experts = np.array([[0, 1], [1, 2], [1, 0]])
    counts = count_assignments(np.array([0, 0, 1]), experts, num_kinds=2, num_experts=3)
    assert counts.tolist() == [[1, 2, 1], [1, 1, 0]]


def test_chance_leaves_few_bits_where_kinds_decide_everything() -> None:
    kinds = np.arange(2000) % 2
    experts = kinds[:, None]
    assert mutual_information(count_assignments(kinds, experts, 2, 2)) == 1.0
    assert shuffled_information(kinds, experts, 2, 2) < 0.01


def test_a_router_that_is_known_gives_the_table_that_follows_from_the_text() -> None:
    stories = [story.text for story in islice(StoryWorld().stories(3, "validation"), 4)]
    reading = read_experts(by_letter, _Model(mlp_only_layers=[1]), _Bytes(), ["no story", *stories], count=3)
    told = stories[:3]
    assert (reading["stories"], reading["tokens"]) == (3, sum(map(len, told)))
    pieces = [pair for text in told for pair in spans_of(text)]
    for kind, size in reading["kinds"].items():
        assert size == sum(len(letters) for letters, own in pieces if own == kind)
    first, second = reading["layers"]
    assert (first["layer"], second["layer"]) == (0, 2)  # layer 1 has no experts
    capitals = sum(letter.isupper() for text in told for letter in text) / reading["tokens"]
    assert first["load"] == pytest.approx(
        [capitals / 2, capitals / 2, (1 - capitals) / 2, (1 - capitals) / 2]
    )
    names = [letters for letters, kind in pieces if kind == "name"]
    share = len(names) / sum(map(len, names)) / 2  # the first letter of each, to two experts
    assert first["shares"]["name"] == pytest.approx([share, share, 0.5 - share, 0.5 - share])
    assert first["shares"]["number" if "number" in first["shares"] else "feeling"] == [0, 0, 0.5, 0.5]
    assert first["most_bits"] == 1.0
    assert 0.02 < first["bits"] < 1
    assert first["bits_by_chance"] < first["bits"] / 4
    assert second["load"] == [0.5, 0, 0, 0.5]
    assert second["bits"] == pytest.approx(0, abs=1e-12)


def test_the_beginning_of_a_document_stands_before_each_story_and_is_not_counted() -> None:
    given = []

    def record(model: _Model, ids: Sequence[int]) -> np.ndarray:
        given.append(list(ids))
        return by_letter(model, ids)[:1]

    story = next(StoryWorld().stories(3)).text
    long, short = (
        _Model(num_hidden_layers=1, bos_token_id=0),
        _Model(num_hidden_layers=1, max_position_embeddings=9),
    )
    assert read_experts(record, long, _Bytes(), [story])["tokens"] == len(story)
    assert read_experts(record, short, _Bytes(), [story])["tokens"] == 8
    assert given == [[0, *story.encode()], list(story.encode()[:8])]


def test_there_is_no_table_without_stories_or_experts() -> None:
    story = next(StoryWorld().stories(3)).text
    assert read_experts(by_letter, _Model(), _Bytes(), ["Once there was a fox."]) == {}
    dense = _Model(model_type="llama", num_local_experts=0)
    assert read_experts(by_letter, dense, _Bytes(), [story]) == {}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.chdir(tmp_path)
    return RunFolder("v2", load_settings("smoke", ["model.model_type=mixtral", "model.num_local_experts=4"]))


def test_the_file_is_written_for_stories_only_and_an_old_one_goes(run: RunFolder) -> None:
    story = next(StoryWorld().stories(3, "validation")).text
    run.stage("data")  # makes the folder
    run.documents("validation").write_text(json.dumps({"id": "0", "text": story}) + "\n")
    file = run.stage("pretrain") / "experts.json"
    metrics = write_expert_reading(by_letter, _Model(mlp_only_layers=[1]), _Bytes(), run)
    layers = read_json(file)["layers"]
    assert metrics == {"expert_bits": pytest.approx((layers[0]["bits"] + layers[1]["bits"]) / 2)}
    assert (
        write_expert_reading(by_letter, _Model(model_type="llama", num_local_experts=0), _Bytes(), run) == {}
    )
    assert not file.exists()


def add_pretraining(run: RunFolder, rows: int) -> None:
    log = MetricsLog(run.stage("pretrain") / "metrics_log.jsonl")
    for step in range(1, rows + 1):
        log.append(step=step, loss=1.0, **load_metrics([[step, 1, 1, 1], [1, 1, 1, step]]))
    write_finished(run.stage("pretrain"), {}, {"steps": rows, "seconds": 1.0, "expert_bits": 0.25})


@pytest.mark.parametrize("rows", [3, 4])
def test_the_report_shows_the_load_of_each_layer_over_training(run: RunFolder, rows: int) -> None:
    add_pretraining(run, rows)
    text = write_report(run).read_text(encoding="utf-8")
    for layer in (0, 1):
        assert (f">Layer {layer}: load of its experts</text>" in text) == (rows == 4)
    assert ("<h2>The experts</h2>" in text) == (rows == 4)
    assert "tells 0.250 bits of its kind of segment" in text


def test_the_report_names_layers_by_their_place_in_the_model(run: RunFolder) -> None:
    dense_first = run.settings.model.model_copy(update={"num_hidden_layers": 3, "mlp_only_layers": [0]})
    run = RunFolder("v2", run.settings.model_copy(update={"model": dense_first}))
    add_pretraining(run, 4)
    text = write_report(run).read_text(encoding="utf-8")
    assert [layer for layer in range(3) if f">Layer {layer}: load of its experts</text>" in text] == [1, 2]


def test_the_report_shows_which_expert_reads_what(run: RunFolder) -> None:
    layer = {
        "layer": 1, "bits": 0.5, "bits_by_chance": 0.01, "most_bits": 1.0,
        "load": [0.5, 0.25, 0.25, 0.0], "shares": {"name": [0.8, 0.2, 0.0, 0.0], "feeling": [0.0, 0.5, 0.5, 0.0]},
    }  # fmt: skip
    write_json(
        run.stage("pretrain") / "experts.json",
        {"stories": 2, "tokens": 300, "kinds": {"name": 100, "feeling": 200}, "layers": [layer]},
    )
    add_pretraining(run, 1)
    text = write_report(run).read_text(encoding="utf-8")
    assert "The 300 tokens of 2 held-out stories" in text
    assert "Layer 1: a token&#x27;s expert tells 0.500 bits of its kind, at most 1.000 are possible" in text
    cell = '<td class="number" style="background: rgb(59 130 246 / {})">{}</td>'
    row = f'<tr><th>name</th><td class="number">100</td>{cell.format("0.60", "80%")}{cell.format("0.15", "20%")}{cell.format("0.00", "0%") * 2}</tr>'
    assert row in text
    assert '<tr><th>all</th><td class="number">300</td>' in text
    assert "<th>feeling</th><td>proud</td>" in text


def test_a_run_without_experts_has_no_such_section(run: RunFolder) -> None:
    log = MetricsLog(run.stage("pretrain") / "metrics_log.jsonl")
    for step in range(1, 6):
        log.append(step=step, loss=1.0)
    write_finished(run.stage("pretrain"), {}, {"steps": 5, "seconds": 1.0})
    assert "The experts" not in write_report(run).read_text(encoding="utf-8")

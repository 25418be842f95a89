"""The report is one page that opens offline, tells what has been done so far, and shows text as text."""

import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from shared_data.errors import UserError
from shared_data.files import write_json
from shared_data.finished import write_finished
from shared_data.metrics_log import MetricsLog
from shared_data.plots import plot_attention, plot_zipf
from shared_data.report import write_report
from shared_data.runs import RunFolder
from shared_data.settings import load_settings

TRAINED = {
    "steps": 20, "tokens": 5120, "epochs": 1.5, "parameters": 1_012_480, "tokens_per_second": 23456.7,
    "loss": 0.61, "perplexity": 1.85, "bits_per_byte": 0.231, "floor_bits_per_byte": 0.21, "seconds": 145.2,
}  # fmt: skip
EVIL = "<script>alert(1)</script>\x00 & \ud800"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.chdir(tmp_path)
    return RunFolder("v2", load_settings("smoke"))


def add_data(run: RunFolder) -> None:
    write_finished(
        run.stage("data"),
        {},
        {
            "documents": 53,
            "documents_read": 60,
            "bytes": 3000,
            "words": 500,
            "distinct_words": 80,
            "seconds": 2.0,
        },
    )
    plot_zipf([3, 2, 1], run.stage("data") / "zipf.svg")
    examples = {"markup": [EVIL]}
    write_json(
        run.stage("data") / "report.json",
        {"cleaning": {"examples": examples}, "deduplication": {"examples": []}},
    )


def add_training(run: RunFolder, level_loss: float = 1.0) -> None:
    log = MetricsLog(run.stage("pretrain") / "metrics_log.jsonl")
    for step in (5, 10, 15, 20):
        log.append(step=step, loss=level_loss + 1 / step, learning_rate=0.1 / step, grad_norm=1.0)
    log.append(step=20, eval_loss=1.2, sample=EVIL)
    write_json(run.stage("tokenizer") / "validation.json", {"tokens": 100, "log2_probability": -100.0})
    write_finished(run.stage("pretrain"), {}, TRAINED)


class _Page(HTMLParser):
    """Collects what a browser would load, and whether the tags close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.scripts = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.loads += [
            str(value)
            for name, value in attributes
            if name in ("src", "href") and not str(value).startswith("#")
        ]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_complete_loads_nothing_and_shows_text_as_text(run: RunFolder) -> None:
    add_data(run)
    add_training(run)
    write_finished(run.stage("generate"), run.inputs("generate"), {"seconds": 1.0})
    write_json(run.stage("generate") / "samples.json", [{"prompt": "Once", "text": " upon a time"}])
    text = write_report(run).read_text(encoding="utf-8")
    page = _Page(text)
    assert page.open == []
    assert page.loads == []
    assert page.scripts == 0
    assert "&lt;script&gt;" in text
    for promised in (
        "53 for training, of 60 read",
        "1.100 ×",
        "1.01 M",
        "entropy floor",
        "Once</b> upon a time",
        "step 20",
    ):
        assert promised in text


def test_pictures_stand_in_the_page_without_a_fixed_size(run: RunFolder) -> None:
    add_data(run)
    text = write_report(run).read_text(encoding="utf-8")
    picture = ElementTree.fromstring(text[text.index("<svg") : text.index("</svg>") + 6])
    assert "viewBox" in picture.attrib
    assert "width" not in picture.attrib


def test_attention_maps_stand_in_the_page_where_level_2_has_drawn_them(run: RunFolder) -> None:
    add_data(run)
    write_finished(run.stage("generate"), run.inputs("generate"), {"seconds": 1.0})
    assert "<h2>Attention</h2>" not in write_report(run).read_text(encoding="utf-8")
    picture = run.stage("generate") / "attention.svg"
    plot_attention(np.ones((1, 1, 1, 1)), ["<fox>"], [0], [0], picture)
    write_finished(run.stage("generate"), run.inputs("generate"), {"seconds": 1.0})
    text = write_report(run).read_text(encoding="utf-8")
    assert "<h2>Attention</h2>" in text
    assert ">layer 0, head 0</text>" in text
    assert "uv run v2 look &#x27;Once upon a time&#x27; --config smoke" in text
    assert _Page(text).loads == []


def test_tokens_are_shown_as_text_and_not_in_the_letters_of_bytes(run: RunFolder) -> None:
    add_data(run)
    write_finished(run.stage("tokenizer"), run.inputs("tokenizer"), {"seconds": 1.0})
    merges = [["Ġ", "t"], ["Ã", "©"]]
    write_json(run.tokenizer, {"model": {"merges": merges, "vocab": {"Ċ": 0, "ç": 1, "caf": 2}}})
    write_finished(run.stage("tokenizer"), run.inputs("tokenizer"), {"seconds": 1.0})
    text = write_report(run).read_text(encoding="utf-8")
    for token in ("␣ t", "&lt;0xC3&gt; &lt;0xA9&gt;", "⏎", "&lt;0xE7&gt;", "caf"):
        assert f'<span class="token">{token}</span>' in text


def test_a_run_that_is_not_finished_tells_what_is_missing_and_where_training_stands(run: RunFolder) -> None:
    add_data(run)
    MetricsLog(run.stage("pretrain") / "metrics_log.jsonl").append(step=7, loss=2.0)
    text = write_report(run).read_text(encoding="utf-8")
    assert "The stage tokenizer has not finished yet: v2 tokenizer." in text
    assert "it stands at step 7" in text


def test_other_levels_stand_beside(run: RunFolder) -> None:
    add_training(run)
    add_training(RunFolder("v3", run.settings), level_loss=2.0)
    text = write_report(run, ["v3"]).read_text(encoding="utf-8")
    assert '<th class="number">v2</th><th class="number">v3</th>' in text
    assert text.count("0.231") >= 3  # in the title and in both columns


def test_reports_of_nothing_name_the_command_to_run(run: RunFolder) -> None:
    with pytest.raises(UserError, match=r"no run in runs/v2/smoke; make one with `v2 run"):
        write_report(run)
    add_training(run)
    with pytest.raises(
        UserError, match=r"no run in runs/v1/smoke to compare with; make one with `v1 run --config smoke`"
    ):
        write_report(run, ["v1"])
    with pytest.raises(UserError, match=r"no level 'v9' to compare with; use v1, v2, v3"):
        write_report(run, ["v9"])

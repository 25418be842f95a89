"""The report is one page that opens offline, tells what has been done so far, and shows text as text."""

import re
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
from shared_data.report_curves import kl_per_completion
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
    facts = {"dtype": "uint16", "tokens": 100, "bytes": 400, "vocab_size": 300, "log2_probability": -100.0}
    write_json(run.stage("tokenizer") / "validation.json", facts)
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
    assert "The stage tokenizer has not finished yet: uv run v2 tokenizer --config smoke" in text
    assert "it stands at step 7" in text


def test_other_levels_stand_beside(run: RunFolder) -> None:
    add_training(run)
    add_training(RunFolder("v3", run.settings), level_loss=2.0)
    text = write_report(run, ["v3"]).read_text(encoding="utf-8")
    assert '<th class="number">v2</th><th class="number">v3</th>' in text
    assert text.count("0.231") >= 3  # in the title and in both columns


def test_reports_of_nothing_name_the_command_to_run(run: RunFolder) -> None:
    with pytest.raises(UserError, match=r"no run in runs/v2/smoke; make one with `uv run v2 run"):
        write_report(run)
    add_training(run)
    with pytest.raises(
        UserError,
        match=r"no run in runs/v1/smoke to compare with; make one with `uv run v1 run --config smoke`",
    ):
        write_report(run, ["v1"])
    with pytest.raises(UserError, match=r"no level 'v9' to compare with; use v1, v2, v3"):
        write_report(run, ["v9"])


STORY = "There once was Oscar the boy. He had a ball."
PROMPT = f"{STORY}\nQuestion: Who has the ball at the end?"


def add_tuning(run: RunFolder, before: str = "\ufffd\ufffd\ufffd") -> None:
    log = MetricsLog(run.stage("sft") / "metrics_log.jsonl")
    for step in (5, 10):
        log.append(step=step, loss=5 / step)
    record = {"kind": "holder", "prompt": PROMPT, "expected": "The holder of the ball is Oscar."}
    answers = {"before": [record | {"reply": before}], "after": [record | {"reply": "The holder is Oscar."}]}
    write_json(run.stage("sft") / "answers.json", answers)
    write_finished(run.stage("sft"), run.inputs("sft"), {"qa_accuracy": 0.5, "seconds": 1.0})


def add_ppo(run: RunFolder, steps: int, kl: float) -> None:
    """A stage with so many rows in its log, whose KL is `kl` nats per completion at the end."""
    for stage in ("reward", "ppo"):
        numbers = {"before": 0.5, "after": 0.6, "kl": kl, "accuracy": 0.8, "seconds": 1.0}
        write_finished(run.stage(stage), run.inputs(stage), numbers)
    log = MetricsLog(run.stage("ppo") / "metrics_log.jsonl")
    for step in range(1, steps + 1):
        log.append(step=step, loss=1 / step, reward=step / 10, **{"objective/kl": kl})
    record = {
        "prompt": PROMPT,
        "before": "\ufffd",
        "before_reward": 0.0,
        "after": "Oscar \ufffd",
        "after_reward": 1.0,
    }
    unscored = {"prompt": "a", "before": "b", "before_reward": None, "after": "c", "after_reward": None}
    write_json(run.stage("ppo") / "completions.json", [record, unscored])


def test_a_question_stands_with_its_story(run: RunFolder) -> None:
    add_training(run)
    add_tuning(run)
    add_ppo(run, 1, 0.1)
    text = write_report(run).read_text(encoding="utf-8")
    # Before and after tuning, what was answered wrong, the lowest reward, and the same prompts after each stage.
    assert text.count(f"{STORY}<b>\nQuestion: Who has the ball at the end?</b>") == 4
    assert "<td>c</td><td>none</td>" in text, "a completion that the reward does not apply to"


def test_what_cannot_be_read_is_said_in_words(run: RunFolder) -> None:
    add_training(run)
    add_tuning(run)
    add_ppo(run, 1, 0.1)
    text = write_report(run).read_text(encoding="utf-8")
    assert "<td>(nothing that can be read: bytes that make no character)</td>" in text
    assert "<td>Oscar \ufffd</td>" in text
    assert "\ufffd stands for bytes that make no character." in text
    assert "<td>\ufffd" not in text
    add_tuning(run, before=" \n")
    assert "<td>(nothing)</td>" in write_report(run).read_text(encoding="utf-8")


@pytest.mark.parametrize("steps", [3, 4])
def test_few_points_are_a_sentence_and_not_a_curve(run: RunFolder, steps: int) -> None:
    add_training(run)
    add_tuning(run)
    add_ppo(run, steps, 0.25)
    text = write_report(run).read_text(encoding="utf-8")
    assert "<p>Loss in nats per token: 1.0000 at step 5, 0.5000 at step 10.</p>" in text
    sentence = (
        "<p>KL to the reference, nats per completion: 0.250 at step 1, 0.250 at step 2, 0.250 at step 3.</p>"
    )
    assert (sentence in text) == (steps == 3)
    assert (">KL to the reference, nats per completion</text>" in text) == (steps == 4)
    assert (">Reward against KL, a point a step</text>" in text) == (steps == 4)


@pytest.mark.parametrize("steps", [2, 5])
def test_a_divergence_below_zero_is_explained(run: RunFolder, steps: int) -> None:
    add_training(run)
    add_tuning(run)
    for kl, explained in ((-0.01, True), (0.01, False)):
        (run.path / "ppo" / "metrics_log.jsonl").unlink(missing_ok=True)
        add_ppo(run, steps, kl)
        text = write_report(run).read_text(encoding="utf-8")
        assert f"{kl:.3f} nats per completion" in text
        assert ("an estimate from samples, which can be below 0" in text) == explained
        assert ("Estimated from samples, so a point can lie below 0" in text) == explained


def test_every_divergence_is_per_completion() -> None:
    assert kl_per_completion({"objective/kl": 0.5}) == 0.5
    assert kl_per_completion({"kl": 0.25, "completion_length": 8.0}) == 2.0
    assert kl_per_completion({"kl": 0.25, "completions/mean_length": 4.0}) == 1.0
    assert kl_per_completion({"kl": 0.25}) is None
    assert kl_per_completion({"loss": 1.0, "completion_length": 8.0}) is None


def test_the_comparison_begins_with_words_and_folds_the_whole_table(run: RunFolder) -> None:
    add_training(run)
    add_training(RunFolder("v3", run.settings), level_loss=2.0)
    other = RunFolder("v3", run.settings)
    write_finished(
        other.stage("pretrain"), {}, TRAINED | {"bits_per_byte": 0.25410, "loss": 0.7, "seconds": 290.4}
    )
    text = write_report(run, ["v3"]).read_text(encoding="utf-8")
    section = text[text.index("The levels side by side") :]
    words, table, curve, folded = (
        section.index(part) for part in ("10.0% apart", "<table", "<figure", "<details")
    )
    assert words < table < curve < folded
    assert "v2 (level 2, by hand in PyTorch) and v3 (level 3, NumPy alone)" in section
    assert "0.0900 nats per token. v2 took the least time, v3 2.0 times as long." in section
    assert "pretrain: tokens per second" not in section[:folded]


def test_every_command_on_the_page_begins_with_uv_run(run: RunFolder) -> None:
    add_data(run)
    text = write_report(run).read_text(encoding="utf-8")
    assert len(re.findall(r"uv run v2 \w+", text)) >= 4
    assert re.findall(r"(?<!uv run )\bv2 (?:run|data|tokenizer|pretrain|evaluate|generate)", text) == []


def test_loss_by_position_is_drawn_where_it_was_measured(run: RunFolder) -> None:
    add_training(run)
    write_finished(
        run.stage("evaluate"),
        run.inputs("evaluate"),
        {"bits_per_byte": 1.0, "perplexity": 2.0, "seconds": 1.0},
    )
    title = ">Loss by position</text>"
    assert title not in write_report(run).read_text(encoding="utf-8")
    write_json(run.stage("evaluate") / "loss_by_position.json", [3.0, 2.0, 1.5, 1.0])
    assert title in write_report(run).read_text(encoding="utf-8")

"""A run as one HTML page that opens offline: from the corpus to the generated text.

Everything shown is read from the run folder: `metrics.json`, the report of the data stage, the metrics log, the generated
texts. A stage that has not run is left out with a note, so the page can be written at any time.

    v2 report --config tiny
    v2 report --config tiny --compare v1 v3
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from shared_data import report_html as html
from shared_data.errors import UserError
from shared_data.evaluation.held_out import LOSS_BY_POSITION
from shared_data.files import atomic_write, read_json
from shared_data.finished import damage, read_finished
from shared_data.foreign_json import ForeignJson
from shared_data.generated_text import readable
from shared_data.inference.sample_prompts import example_prompt
from shared_data.plots import FEWEST_POINTS, plot_lines
from shared_data.progress import format_metric, format_seconds
from shared_data.report_alignment import alignment
from shared_data.report_benchmarks import benchmarks
from shared_data.report_comparison import LEVELS, comparison, other_run, training_log
from shared_data.report_curves import curves, training_curve
from shared_data.report_examples import note_on
from shared_data.report_experts import experts
from shared_data.report_tuning import instruction_tuning
from shared_data.runs import RunFolder
from shared_data.state_schema import DataReport, Losses, Samples, TokenFacts, read_state
from shared_data.summary import summary_rows
from shared_data.tokenizer.tokenizer_check import check_bpe

_CURVES = (
    ("above", "Training loss above the floor, nats per token", True),
    ("learning_rate", "Learning rate", False),
    ("grad_norm", "Norm of the gradient, before clipping", True),
)


def write_report(run: RunFolder, compare: Sequence[str] = ()) -> Path:
    """Write `report.html` into the run folder and return its path.

    `compare` names levels whose runs of the same configuration are shown beside it. Raises `UserError` where there is no run.
    """
    if not run.metrics():
        raise UserError(f"no run in {run.path}; make one with `uv run {run.level} run`")
    for stage in run.metrics():
        record = read_finished(run.path / stage)
        broken = record and damage(run.path / stage, record)
        if broken:
            raise UserError(
                f"the report needs the stage {stage}, but {broken}; make it again with `uv run {run.command('run')}`"
            )
    others = [other_run(run, level) for level in compare if level != run.level]
    corpus = (_header, _corpus, _tokenizer)
    results = (
        _training,
        experts,
        instruction_tuning,
        alignment,
        _evaluation,
        benchmarks,
        _generation,
        _time,
        _settings,
    )
    sections = [*corpus, *results]
    body = [part for section in sections for part in section(run)]
    if others:
        body[1:1] = comparison([run, *others])
    path = run.path / "report.html"
    with atomic_write(path, "w") as file:
        file.write(html.page(f"{run.level} {run.settings.name}", body))
    return path


def _header(run: RunFolder) -> Iterator[str]:
    """Title and the numbers that matter most."""
    metrics = run.metrics()
    data, training = metrics.get("data", {}), metrics.get("pretrain", {})
    result = metrics.get("evaluate", training)
    facts = []
    if "bits_per_byte" in result:
        facts.append((f"{result['bits_per_byte']:.4f}", "bits per byte on held-out text"))
    if floor := result.get("floor_bits_per_byte"):
        facts.append((f"{result['bits_per_byte'] / floor:.3f} ×", f"the entropy floor of {floor:.4f}"))
    if "perplexity" in result:
        facts.append((f"{result['perplexity']:.3f}", "perplexity per token"))
    if "bytes" in data:
        facts.append((f"{data['bytes'] / 1e6:.1f} MB", "of clean text"))
    if "parameters" in training:
        facts.append((_short(training["parameters"]), "parameters"))
        facts.append((_short(training["tokens_per_second"]), "tokens per second in training"))
    if "qa_accuracy" in metrics.get("sft", {}):
        share = format_metric("qa_accuracy", metrics["sft"]["qa_accuracy"])
        facts.append((share, "of held-out questions answered right"))
    for stage in ("dpo", "ppo", "grpo"):
        if {"before", "after"} <= (numbers := metrics.get(stage, {})).keys():
            after, before = (format_metric("reward", numbers[moment]) for moment in ("after", "before"))
            facts.append((after, f"reward after {stage.upper()}, {before} before"))
    facts.append((format_seconds(sum(stage["seconds"] for stage in metrics.values())), "for all stages"))
    title = f"<h1>{html.escape(run.settings.name)}, made by {html.escape(run.level)}</h1>"
    yield (
        title
        + html.paragraph(
            f"A language model, from the raw text to the aligned model, made with {LEVELS.get(run.level, run.level)}.",
            "soft",
        )
        + html.tiles(facts)
    )


def _corpus(run: RunFolder) -> Iterator[str]:
    """What was read, what was dropped and why, and how often that was correct."""
    yield html.heading("The corpus")
    if (metrics := _finished(run, "data")) is None:
        yield _missing(run, "data")
        return
    source = run.settings.data.source
    if source == "story_world":
        yield html.paragraph(
            "Short stories from a seeded grammar that tracks who has what, where and why. Every choice in a story "
            "has a known probability, so the entropy of the text is known exactly: the floor below which no model's "
            "loss can fall. Dirt and duplicates are mixed in on purpose, to measure how well cleaning removes them."
        )
    else:
        yield html.paragraph(f"Text from {source}.")
    yield html.table(summary_rows("data", metrics))
    folder = run.stage("data")
    yield html.side_by_side(
        html.figure(folder / f"{name}.svg", caption)
        for name, caption in (
            ("dropped", "Documents that were dropped, and the rule that did it."),
            ("repairs", "Documents that were repaired, and how."),
            ("lengths", "How long the documents are."),
            ("zipf", "Natural language follows Zipf's law: a word's frequency falls with its rank."),
        )
    )
    yield from _dropped_examples(_read(folder / "report.json", DataReport, "data", {}))


def _dropped_examples(report: dict[str, Any]) -> Iterator[str]:
    """The beginnings of a few documents for each rule that dropped or repaired them."""
    rows = [
        [kind.replace("_", " "), text]
        for kind, texts in report.get("cleaning", {}).get("examples", {}).items()
        for text in texts
    ]
    if rows:
        yield html.folded("Examples: what cleaning repaired or dropped", html.table(rows))
    rows = [
        [f"{example['kind']}, {example['similarity']:.2f}", example["text"]]
        for example in report.get("deduplication", {}).get("examples", [])
    ]
    if rows:
        yield html.folded(
            "Examples: duplicates, with their similarity to the document that was kept", html.table(rows)
        )


def _tokenizer(run: RunFolder) -> Iterator[str]:
    """How text becomes numbers."""
    yield html.heading("The tokenizer")
    if (metrics := _finished(run, "tokenizer")) is None:
        yield _missing(run, "tokenizer")
        return
    yield html.paragraph(
        "Byte-level BPE starts from the 256 bytes and keeps merging the most frequent pair of neighbours into a new token."
    )
    yield html.table(summary_rows("tokenizer", metrics))
    tokenizer = read_json(run.tokenizer) if run.tokenizer.exists() else {}
    if tokenizer:
        check_bpe(tokenizer, run.tokenizer)
    model, special = (
        tokenizer.get("model", {}),
        {token["content"] for token in tokenizer.get("added_tokens", [])},
    )
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model.get("merges", [])]
    if merges:
        yield "<h3>The first merges</h3>" + html.tokens(merges[:24])
        longest = sorted(set(model.get("vocab", {})) - special, key=lambda token: (-len(token), token))[:16]
        yield "<h3>The longest tokens</h3>" + html.tokens(longest)


def _training(run: RunFolder) -> Iterator[str]:
    """Loss against the floor, learning rate, gradient norm, and samples during training."""
    yield html.heading("Training")
    rows = training_log(run).rows()
    metrics = _finished(run, "pretrain")
    if metrics is None and not rows:
        yield _missing(run, "pretrain")
        return
    if metrics is None:
        yield html.paragraph(
            f"This training is not finished; it stands at step {rows[-1]['step']:,}.", "soft"
        )
    else:
        yield html.table(summary_rows("pretrain", metrics))
    floor = _floor_in_nats(run)
    caption = "The loss is the mean surprise at the next token, in nats."
    if floor is not None:
        caption += " The dashed line is the entropy of the text: no model can have a lower loss."
    yield training_curve(run, "loss", rows, floor, caption)
    if floor is not None:
        rows = [{**row, "above": row["loss"] - floor} if row.get("loss") else row for row in rows]
    yield curves(run, "pretrain", rows, _CURVES)
    samples = [(f"step {row['step']:,}", readable(row["sample"])) for row in rows if row.get("sample")]
    if samples:
        yield "<h3>Samples during training</h3>" + html.table(samples) + note_on(text for _, text in samples)


def _evaluation(run: RunFolder) -> Iterator[str]:
    """The metrics on held-out text."""
    yield html.heading("Evaluation")
    if (metrics := _finished(run, "evaluate")) is None:
        yield _missing(run, "evaluate")
        return
    yield html.paragraph(
        f"On the {run.settings.evaluate.split} split. Bits per byte compare models with different tokenizers; perplexity does not."
    )
    yield html.table(summary_rows("evaluate", metrics))
    means = _read(run.stage("evaluate") / LOSS_BY_POSITION, Losses, "evaluate", [])
    if len(means) >= FEWEST_POINTS:
        path = run.path / "report" / "loss_by_position.svg"
        curve = {"": (range(len(means)), means)}
        x_label = "place in the document"
        plot_lines(
            curve, path, title="Loss by position", x_label=x_label, y_label="nats per token", wide=True
        )
        yield html.figure(path, "The beginning of a text is hardest to predict: nothing is known of it yet.")


def _generation(run: RunFolder) -> Iterator[str]:
    """How the model continues prompts."""
    yield html.heading("Generated text")
    if _finished(run, "generate") is None:
        yield _missing(run, "generate")
        return
    section = run.settings.generate
    yield html.paragraph(
        f"Temperature {section.temperature:g}, top-k {section.top_k or 'off'}, top-p {section.top_p or 'off'}, seed {section.seed}; the prompt in bold.",
        "soft",
    )
    samples = _read(run.stage("generate") / "samples.json", Samples, "generate", [])
    yield from (html.quote(readable(sample["text"]), sample["prompt"]) for sample in samples)
    yield note_on(sample["text"] for sample in samples)
    yield from _attention(run)


def _attention(run: RunFolder) -> Iterator[str]:
    """The attention maps that level 2 draws; nothing at the other levels."""
    picture = run.stage("generate") / "attention.svg"
    if not picture.is_file():
        return
    yield html.heading("Attention")
    yield html.paragraph(
        "Each map is one head of the pretrained model, over the beginning of a held-out text. A row shows how much its token reads "
        "from each token up to itself. A map says where a head reads, not why the model predicts what it does."
    )
    yield html.figure(picture, f"For a text of your own: uv run {run.command('look', example_prompt(run))}")


def _time(run: RunFolder) -> Iterator[str]:
    """The seconds of each stage."""
    seconds = {stage: numbers["seconds"] for stage, numbers in run.metrics().items()}
    yield html.heading("Time")
    yield html.bars([(stage, value, format_seconds(value)) for stage, value in seconds.items()])


def _settings(run: RunFolder) -> Iterator[str]:
    """Everything that is needed to repeat this run."""
    yield html.heading("Settings")
    yield html.paragraph(
        f"This file repeats the run: uv run {run.level} run --config {run.path / 'settings.toml'} --out {run.path}-again"
    )
    path = run.path / "settings.toml"
    yield html.folded(
        "settings.toml", html.preformatted(path.read_text(encoding="utf-8") if path.exists() else "")
    )


def _finished(run: RunFolder, stage: str) -> dict[str, float] | None:
    """The numbers of a stage, None where it has not finished."""
    return run.metrics().get(stage)


def _missing(run: RunFolder, stage: str) -> str:
    return html.paragraph(f"The stage {stage} has not finished yet: uv run {run.command(stage)}", "soft")


def _read(path: Path, kind: type[ForeignJson], stage: str, default: Any) -> Any:
    """A JSON file of a stage, or the default where the stage did not write it."""
    return read_state(path, kind, stage) if path.exists() else default


def _floor_in_nats(run: RunFolder) -> float | None:
    """The entropy of the validation text in the unit of the loss: nats per token."""
    facts = _read(run.path / "tokenizer" / "validation.json", TokenFacts, "tokenizer", {})
    bits = facts.get("log2_probability")
    return -bits * math.log(2) / facts["tokens"] if bits is not None and facts["tokens"] else None


def _short(number: float) -> str:
    """12,345 · 1.24 M · 1.2 B."""
    for size, unit in ((1e9, "B"), (1e6, "M")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:,.0f}"

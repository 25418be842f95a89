"""What came of a stage, in words: printed while the pipeline runs, and shown again in the report.

A row is a label and a sentence with the numbers of `metrics.json` in it; rows whose numbers a run does not have (no entropy
floor on a user's own text, no truth about its dirt) are left out. A stage without rows here shows all of its numbers.
"""

import shlex
import sys
from pathlib import Path

from shared_data.files import read_json
from shared_data.progress import format_number, format_seconds
from shared_data.run_writing import SETTINGS
from shared_data.runs import RunFolder
from shared_data.stages import STAGES

_SAMPLE_LENGTH = 300  # characters of a generated text that are printed; the report shows all

# What the exam of a stage that aligns has found.
_EXAM = [
    ("reward", "{before:.3f} before, {after:.3f} after, on held-out prompts"),
    ("of it for questions", "{question_before:.3f} before, {question_after:.3f} after"),
    ("of it for requests", "{request_before:.3f} before, {request_after:.3f} after"),
    ("right answers", "{right_before:.1%} before, {right_after:.1%} after, in however many words"),
    ("moved", "{kl:.2f} nats a reply away from the tuned model (KL)"),
    ("stories", "{bits_per_byte_before:.4f} bits per byte before, {bits_per_byte:.4f} after"),
]

_ROWS: dict[str, list[tuple[str, str]]] = {
    "data": [
        ("documents", "{documents:,} for training, of {documents_read:,} read"),
        ("text", "{bytes:,} bytes, {words:,} words, {distinct_words:,} of them distinct"),
        ("repaired", "{documents_repaired:,} documents"),
        ("dropped by cleaning", "{dropped_by_cleaning:,} documents"),
        ("dropped as duplicates", "{dropped_exact_duplicates:,} exact, {dropped_near_duplicates:,} near"),
        ("cleaning, by the truth", "precision {cleaning_precision:.4f}, recall {cleaning_recall:.4f}"),
        (
            "duplicates, by the truth",
            "precision {deduplication_precision:.4f}, recall {deduplication_recall:.4f}",
        ),
        ("held out", "{validation_documents:,} documents for validation, {test_documents:,} for the test"),
        (
            "entropy floor",
            "{test_floor_bits_per_byte:.4f} bits per byte on the test split; no model can do better",
        ),
    ],
    "tokenizer": [
        ("vocabulary", "{vocab_size:,} tokens"),
        ("compression", "{bytes_per_token:.2f} bytes in a token"),
        (
            "text",
            "{tokens:,} tokens for training, {validation_tokens:,} for validation, {test_tokens:,} for the test",
        ),
    ],
    "pretrain": [
        ("model", "{parameters:,} parameters"),
        ("training", "{steps:,} steps, {tokens:,} tokens: {epochs:.2f} times through the text"),
        ("speed", "{tokens_per_second:,.0f} tokens/s"),
        ("last training loss", "{loss:.4f} nats per token"),
        ("perplexity", "{perplexity:.3f} on validation text"),
        ("bits per byte", "{bits_per_byte:.4f} on validation text"),
        ("entropy floor", "{floor_bits_per_byte:.4f}; the model is at {times_the_floor:.3f} times the floor"),
    ],
    "sft": [
        ("training", "{steps:,} steps on {conversations:,} conversations, {tokens:,} tokens of replies"),
        ("speed", "{tokens_per_second:,.0f} tokens of replies a second"),
        ("last training loss", "{loss:.4f} nats per token of a reply"),
        ("held-out questions", "{qa_accuracy:.1%} answered right, {qa_accuracy_before:.1%} before"),
        ("not to be answered", "{unanswerable_accuracy:.1%} of them declined, as is right"),
        (
            "trained",
            "{trainable_parameters:,} parameters; {training_megabytes:.1f} MB with gradients and moments",
        ),
    ],
    "reward": [
        ("training", "{steps:,} steps on {pairs:,} pairs, {tokens:,} tokens"),
        ("speed", "{tokens_per_second:,.0f} tokens/s"),
        ("held-out pairs", "{accuracy:.1%} of {test_pairs:,} in the right order"),
    ],
    "dpo": [
        ("training", "{steps:,} steps on {pairs:,} pairs, {tokens:,} tokens"),
        ("speed", "{tokens_per_second:,.0f} tokens/s"),
        ("held-out pairs", "{accuracy:.1%} in the right order"),
        *_EXAM,
    ],
    "ppo": [
        ("training", "{steps:,} updates, {tokens:,} tokens"),
        ("speed", "{tokens_per_second:,.0f} tokens/s, sampling included"),
        *_EXAM,
    ],
    "grpo": [
        ("training", "{steps:,} updates, {tokens:,} tokens"),
        ("speed", "{tokens_per_second:,.0f} tokens/s, sampling included"),
        *_EXAM,
    ],
    "evaluate": [
        ("text", "{tokens:,} tokens, {bytes:,} bytes that the model has never seen"),
        ("perplexity", "{perplexity:.3f}"),
        ("bits per byte", "{bits_per_byte:.4f}"),
        ("entropy floor", "{floor_bits_per_byte:.4f}; the model is at {times_the_floor:.3f} times the floor"),
    ],
    "generate": [
        ("texts", "{samples:,} prompts continued, {mean_words:.0f} words on average"),
        ("speed", "{tokens_per_second:,.0f} tokens/s"),
        ("true to the story world", "{consistent_story_ratio:.1%} of {stories:,} stories told from nothing"),
    ],
}


def summary_rows(stage: str, metrics: dict[str, float]) -> list[tuple[str, str]]:
    """Label and sentence of everything that is known about a finished stage."""
    if stage not in _ROWS:
        return [
            (key.replace("_", " "), format_number(value))
            for key, value in metrics.items()
            if key != "seconds"
        ]
    values = dict(metrics)
    if values.get("floor_bits_per_byte") and "bits_per_byte" in values:
        values["times_the_floor"] = values["bits_per_byte"] / values["floor_bits_per_byte"]
    if "training_bytes" in values:
        values["training_megabytes"] = values["training_bytes"] / 1e6
    rows = []
    for label, sentence in _ROWS[stage]:
        try:
            rows.append((label, sentence.format_map(values)))
        except KeyError:
            continue  # this run does not know that number
    return rows


def print_heading(stage: str, run: RunFolder, force: bool = False) -> None:
    """Announce a stage; `force` starts it over. Level 1 continues pretraining only."""
    continues = run.is_interrupted(stage) and not force and (run.level != "v1" or stage == "pretrain")
    continued = " (continuing where it was interrupted)" if continues else ""
    _print_title(f"{run.level} {stage}", STAGES[stage].summary.partition(";")[0].rstrip(".") + continued)


def print_current(stage: str, run: RunFolder) -> None:
    """Say that a stage need not be done again."""
    _print_title(
        f"{run.level} {stage}", "nothing changed since it was done; kept as it is (--force does it again)"
    )


def print_summary(stage: str, metrics: dict[str, float], run: RunFolder) -> None:
    """What came of a stage, and where it is."""
    written = ("written to", f"{run.stage(stage)}, in {format_seconds(metrics['seconds'])}")
    print_rows([*summary_rows(stage, metrics), *_samples(stage, run), written])


def _samples(stage: str, run: RunFolder) -> list[tuple[str, str]]:
    """The beginnings of the generated texts."""
    path = run.path / stage / "samples.json"
    samples = read_json(path, list) if stage == "generate" and path.exists() else []
    texts = [" ".join((sample["prompt"] + sample["text"]).split()) for sample in samples]
    return [
        ("it wrote", text if len(text) <= _SAMPLE_LENGTH else text[:_SAMPLE_LENGTH] + " …") for text in texts
    ]


def print_next(run: RunFolder, finished: str) -> None:
    """After a stage, the command of the next one."""
    following = next((name for name, stage in STAGES.items() if stage.after == finished), None)
    rows = [("next", f"uv run {run.command(following)}")] if following else []
    print_rows([*rows, ("the run as a page", f"uv run {run.command('report')}")])


def print_finished(run: RunFolder, report: Path) -> None:
    """After the last stage, what a newcomer may try now."""
    _print_title("finished", f"everything is in {run.path}")
    changed = ("run", "--from", "pretrain", "--set", "pretrain.learning_rate=1e-3")
    rows = [
        ("see the whole story", str(report)),
        ("try the model", f"uv run {run.command('generate', '--prompt', 'Once upon a time')}"),
        ("change a setting", f"uv run {run.command(*changed)}"),
        ("see all settings", f"uv run {run.level} settings --out {shlex.quote(str(run.path))}"),
    ]
    other = "v3" if run.level != "v3" else "v2"
    config = shlex.quote(str(run.path / SETTINGS))
    print_rows([*rows, ("make it another way", f"uv run {other} run --config {config}")])


def print_rows(rows: list[tuple[str, str]]) -> None:
    """Label and text in two columns; long texts wrap on a terminal and stay whole in a file."""
    if not sys.stdout.isatty():
        for label, text in rows:
            print(f"   {label + ':':<27}{text}", flush=True)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", min_width=28, no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in rows:
        table.add_row(f"   {label}", Text(text))
    Console(highlight=False).print(table)


def _print_title(title: str, text: str) -> None:
    if not sys.stdout.isatty():
        print(f"\n== {title}: {text}", flush=True)
        return
    from rich.console import Console
    from rich.text import Text

    Console(highlight=False).print(Text.assemble("\n", ("▌ " + title, "bold cyan"), "  ", (text, "dim")))

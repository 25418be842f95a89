"""The results of a stage in words: printed while the pipeline runs, and shown again in the report.

A row is a label and a sentence with the numbers of `metrics.json` in it; rows whose numbers a run does not have (no entropy
floor on a user's own text, no truth about its dirt) are left out. A stage without rows here shows all of its numbers.
"""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from shared_data.corpus.statistics import unit_of
from shared_data.generated_text import readable
from shared_data.inference.sample_prompts import example_prompt
from shared_data.progress import format_metric, format_seconds
from shared_data.run_writing import SETTINGS
from shared_data.runs import RunFolder
from shared_data.stages import STAGES, left_out
from shared_data.state_schema import Samples, read_state

_SAMPLE_LENGTH = 300  # characters of a generated text that are printed; the report shows all

# What became of a user's records (corpus/bad_records.py).
_RECORDS = [
    ("records", "{records_read:,} read, {records_skipped:,} skipped as they cannot be used"),
    ("cut off", "{records_cut:,} that are longer than max_length"),
    ("left out", "{records_too_long:,} that are longer than max_length"),
]

# The evaluation of a policy before and after a stage that aligns it (alignment/policy_evaluation.py).
_POLICY = [
    ("reward", "{before:.3f} before, {after:.3f} after, for completions of held-out prompts"),
    ("without a reward", "{unscored:,} of the held-out completions; the function returned None for them"),
    ("reward, questions", "{question_before:.3f} before, {question_after:.3f} after"),
    ("reward, story requests", "{request_before:.3f} before, {request_after:.3f} after"),
    ("right answers", "{right_before:.1%} before, {right_after:.1%} after, whatever their length"),
    ("KL to the reference", "{kl:.3f} nats per completion{kl_note}"),
    ("completions that end", "{finished_before:.1%} before, {finished:.1%} after; the others are cut off"),
    ("stories", "{bits_per_byte_before:.4f} bits per byte before, {bits_per_byte:.4f} after"),
]

# Of benchmarks; a name that ends another stands behind it.
_SCORES = (
    *("acc_norm", "acc", "exact_match_flexible", "exact_match"),
    *("word_perplexity", "byte_perplexity", "bits_per_byte", "perplexity", "n"),
)

_BELOW_ZERO = "; an estimate from samples, which can be below 0 (policy_evaluation.md)"

_ROWS: dict[str, list[tuple[str, str]]] = {
    "data": [
        *_RECORDS[:1],  # none is cut
        ("documents", "{documents:,} for training, of {documents_read:,} read"),
        (
            "left out",
            "what the corpus has beyond data.max_megabytes={stopped_at_megabytes:g}; raise it to read more",
        ),
        ("text", "{bytes:,} bytes, {words:,} {unit}, {distinct_words:,} of them distinct"),
        ("repaired", "{documents_repaired:,} documents"),
        ("dropped by cleaning", "{dropped_by_cleaning:,} documents"),
        ("dropped as duplicates", "{dropped_exact_duplicates:,} exact, {dropped_near_duplicates:,} near"),
        (
            "cleaning, checked",
            "precision {cleaning_precision:.4f}, recall {cleaning_recall:.4f}, by the dirt that was put in",
        ),
        (
            "duplicates, checked",
            "precision {deduplication_precision:.4f}, recall {deduplication_recall:.4f}, by the duplicates that were put in",
        ),
        ("held out", "{validation_documents:,} documents for validation, {test_documents:,} for testing"),
        (
            "entropy floor",
            "{test_floor_bits_per_byte:.4f} bits per byte on the test split; no model can do better",
        ),
    ],
    "tokenizer": [
        ("vocabulary", "{vocab_size:,} tokens"),
        ("compression", "{bytes_per_token:.2f} bytes per token"),
        (
            "text",
            "{tokens:,} tokens for training, {validation_tokens:,} for validation, {test_tokens:,} for testing",
        ),
    ],
    "pretrain": [
        ("model", "{parameters:,} parameters"),
        ("training", "{steps:,} steps, {tokens:,} tokens: {epochs:.2f} epochs"),
        ("speed", "{tokens_per_second:,.0f} tokens/s"),
        ("last training loss", "{loss:.4f} nats per token"),
        ("perplexity", "{perplexity:.3f} on validation text"),
        ("bits per byte", "{bits_per_byte:.4f} on validation text"),
        ("entropy floor", "{floor_bits_per_byte:.4f}; the model is at {ratio_to_floor:.3f} times the floor"),
        ("experts", "a token's expert tells {expert_bits:.3f} bits of its kind of segment"),
    ],
    "sft": [
        *_RECORDS,
        ("training", "{steps:,} steps on {conversations:,} conversations, {tokens:,} tokens"),
        ("speed", "{tokens_per_second:,.0f} tokens/s"),
        ("last training loss", "{loss:.4f} nats per token of the assistant"),
        ("held-out questions", "{qa_accuracy:.1%} answered right, {qa_accuracy_before:.1%} before"),
        ("unanswerable questions", "{unanswerable_accuracy:.1%} answered right: the story does not say"),
        ("trained parameters", "{trainable_parameters:,}"),
        ("memory", "{training_megabytes:.1f} MB for weights, gradients and optimizer state"),
    ],
    "reward": [
        *_RECORDS,
        ("training", "{steps:,} steps on {pairs:,} pairs, {tokens:,} tokens"),
        ("speed", "{tokens_per_second:,.0f} tokens/s"),
        ("held-out pairs", "{accuracy:.1%} of {eval_pairs:,} in the right order"),
    ],
    "dpo": [
        *_RECORDS,
        ("training", "{steps:,} steps on {pairs:,} pairs, {tokens:,} tokens"),
        ("speed", "{tokens_per_second:,.0f} tokens/s"),
        ("held-out pairs", "{accuracy:.1%} in the right order"),
        *_POLICY,
    ],
    "ppo": [
        *_RECORDS[:1],  # none is cut
        ("training", "{steps:,} updates"),
        ("prompts", "{prompts:,} to train on"),
        ("tokens", "{tokens:,}, {tokens_per_second:,.0f} per second, sampling included"),
        *_POLICY,
    ],
    "grpo": [
        *_RECORDS[:1],  # none is cut
        ("training", "{steps:,} updates"),
        ("prompts", "{prompts:,} to train on"),
        ("tokens", "{tokens:,}, {tokens_per_second:,.0f} per second, sampling included"),
        *_POLICY,
    ],
    "evaluate": [
        ("text", "{tokens:,} held-out tokens, {bytes:,} bytes"),
        ("perplexity", "{perplexity:.3f}"),
        ("bits per byte", "{bits_per_byte:.4f}"),
        ("entropy floor", "{floor_bits_per_byte:.4f}; the model is at {ratio_to_floor:.3f} times the floor"),
    ],
    "generate": [
        ("texts", "{samples:,} prompts continued, {mean_words:.0f} words on average"),
        ("texts", "{samples:,} prompts continued, {mean_characters:.0f} characters on average"),
        ("speed", "{tokens_per_second:,.0f} tokens/s"),
        (
            "consistent stories",
            "{consistent_story_ratio:.1%} of {stories:,} without a prompt are stories of the world",
        ),
    ],
}


def summary_rows(stage: str, metrics: dict[str, float]) -> list[tuple[str, str]]:
    """Label and sentence for every known metric of a finished stage."""
    if stage == "benchmark":
        return _score_rows(metrics)
    if stage not in _ROWS:
        return [
            (key.replace("_", " "), format_metric(key, value))
            for key, value in metrics.items()
            if key != "seconds"
        ]
    values: dict[str, float | str] = dict(metrics)
    if values.get("floor_bits_per_byte") and "bits_per_byte" in values:
        values["ratio_to_floor"] = metrics["bits_per_byte"] / metrics["floor_bits_per_byte"]
    if "training_bytes" in values:
        values["training_megabytes"] = metrics["training_bytes"] / 1e6
    if stage == "data":  # a run of an earlier version counted no characters
        values["unit"] = unit_of({"characters": 0, "words": 0} | metrics)
    if "kl" in values:
        values["kl_note"] = _BELOW_ZERO if metrics["kl"] < 0 else ""
    rows = []
    for label, sentence in _ROWS[stage]:
        try:
            rows.append((label, sentence.format_map(values)))
        except KeyError:
            continue  # a metric that this run does not have
    return rows


def _score_rows(metrics: dict[str, float]) -> list[tuple[str, str]]:
    """A row a benchmark: its scores with their standard errors, and the number of items."""
    rows: dict[str, list[str]] = {}
    for key, value in metrics.items():
        metric = next((name for name in _SCORES if key.endswith(f"_{name}")), None)
        if metric is None:  # a standard error, or the seconds
            continue
        scores = rows.setdefault(key.removesuffix(f"_{metric}"), [])
        error = metrics.get(f"{key}_stderr")
        bar = "" if error is None else f" ± {format_metric(key, error)}"
        scores.append(f"{value:,} items" if metric == "n" else f"{metric} {format_metric(key, value)}{bar}")
    return [(task, ", ".join(scores)) for task, scores in rows.items()]


def print_heading(stage: str, run: RunFolder, force: bool = False) -> None:
    """Announce a stage; `force` starts it over. Level 1's PPO cannot be continued."""
    continues = run.is_interrupted(stage) and not force and (run.level, stage) != ("v1", "ppo")
    continued = " (continuing where it was interrupted)" if continues else ""
    print_title(f"{run.level} {stage}", STAGES[stage].summary.partition(";")[0].rstrip(".") + continued)


def print_current(stage: str, run: RunFolder) -> None:
    """Say that a stage is up to date."""
    print_title(f"{run.level} {stage}", "nothing changed since it finished; kept (--force runs it again)")


def print_left_out(reasons: Mapping[str, str]) -> None:
    """The stages that a run leaves out, and why; nothing where it has all."""
    stages_of: dict[str, list[str]] = {}
    for stage, reason in reasons.items():
        stages_of.setdefault(reason, []).append(stage)
    for reason, stages in stages_of.items():
        print_title("left out", f"{', '.join(stages)} ({reason})")


def print_summary(stage: str, metrics: dict[str, float], run: RunFolder) -> None:
    """The results of a stage, and where they are."""
    written = ("written to", f"{run.stage(stage)}, in {format_seconds(metrics['seconds'])}")
    print_rows([*summary_rows(stage, metrics), *_samples(stage, run), written])


def _samples(stage: str, run: RunFolder) -> list[tuple[str, str]]:
    """The beginnings of the generated texts."""
    path = run.path / stage / "samples.json"
    samples = read_state(path, Samples, stage) if stage == "generate" and path.exists() else []
    texts = [" ".join(readable(sample["prompt"] + sample["text"]).split()) for sample in samples]
    return [
        ("the model wrote", text if len(text) <= _SAMPLE_LENGTH else text[:_SAMPLE_LENGTH] + " …")
        for text in texts
    ]


def print_next(run: RunFolder, finished: str) -> None:
    """After a stage, the command of the next one."""
    without = left_out(run.settings)
    following = next(
        (name for name, stage in STAGES.items() if stage.after == finished and name not in without), None
    )
    rows = [("next", f"uv run {run.command(following)}")] if following else []
    if finished == "sft":
        rows.insert(0, ("talk with it", f"uv run {run.command('chat')}"))
    print_rows([*rows, ("report", f"uv run {run.command('report')}")])


def print_finished(run: RunFolder, report: Path) -> None:
    """After the last stage, commands to try next."""
    print_title("finished", f"everything is in {run.path}")
    prompt = example_prompt(run)
    changed = ("run", "--from", "pretrain", "--set", "pretrain.learning_rate=1e-3")
    rows = [
        ("report of the run", str(report)),
        ("let it write", f"uv run {run.command('generate', '--prompt', prompt)}"),
        *([("talk with it", f"uv run {run.command('chat')}")] if "sft" in run.metrics() else []),
        ("change a setting", f"uv run {run.command(*changed)}"),
        ("see all settings", f"uv run {run.level} settings --out {shlex.quote(str(run.path))}"),
    ]
    if run.level == "v2":  # tools are this level's
        rows.insert(2, ("look inside it", f"uv run {run.command('look', prompt)}"))
    other = "v3" if run.level != "v3" else "v2"
    words = [other, "run", "--config", str(run.path / SETTINGS)]
    if run.path != Path("runs") / run.level / run.settings.name:
        words += ["--out", f"{run.path}-{other}"]
    print_rows([*rows, ("run another level", f"uv run {shlex.join(words)}")])


def print_rows(rows: list[tuple[str, str]]) -> None:
    """Label and text in two columns; long texts wrap on a terminal and stay whole in a file."""
    if not sys.stdout.isatty():
        width = max([27, *(len(label) + 2 for label, _ in rows)])
        for label, text in rows:
            print(f"   {label + ':':<{width}}{text}", flush=True)
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


def print_title(title: str, text: str) -> None:
    """Announce what comes next: a name, and a few words about it."""
    if not sys.stdout.isatty():
        print(f"\n== {title}: {text}", flush=True)
        return
    from rich.console import Console
    from rich.text import Text

    Console(highlight=False).print(Text.assemble("\n", ("▌ " + title, "bold cyan"), "  ", (text, "dim")))

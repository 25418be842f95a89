"""The section of the report about instruction tuning: the loss, the answers before and after, what was answered wrong.

from shared_data.report_tuning import instruction_tuning
"""

from collections import defaultdict
from collections.abc import Iterator

from shared_data import report_html as html
from shared_data.files import read_json
from shared_data.metrics_log import MetricsLog
from shared_data.plots import plot_training
from shared_data.runs import RunFolder
from shared_data.summary import summary_rows

EXAMPLES = 4  # questions shown with both answers, and as many that were answered wrong


def instruction_tuning(run: RunFolder) -> Iterator[str]:
    """Nothing where the stage `sft` has not finished."""
    metrics = run.metrics().get("sft")
    if metrics is None:
        return
    yield html.heading("Instruction tuning")
    yield html.paragraph(
        "A pretrained model continues text. After fine-tuning on conversations, with the loss on the assistant's tokens only, it answers."
    )
    yield html.table(summary_rows("sft", metrics))
    folder = run.stage("sft")
    log = MetricsLog(folder / "metrics_log.jsonl").rows()
    path = run.path / "report" / "sft_loss.svg"
    plot_training(log, None, path)
    yield html.figure(path, "The loss on the assistant's tokens.")
    answers = folder / "answers.json"
    if not answers.exists():
        return
    records = read_json(answers)
    by_kind: dict[str, list[bool]] = defaultdict(list)
    for record in records["after"]:
        by_kind[record["kind"]].append(record["reply"].strip() == record["expected"])
    yield "<h3>Right answers, by kind of question</h3>" + html.bars(
        [
            (kind, sum(right) / len(right), f"{sum(right)} of {len(right)}")
            for kind, right in sorted(by_kind.items())
        ]
    )
    pairs = list(zip(records["before"], records["after"], strict=True))
    shown = [["question", "right", "before tuning", "after"]]
    shown += [
        [_question(old["prompt"]), old["expected"], old["reply"], new["reply"]]
        for old, new in pairs[:EXAMPLES]
    ]
    yield "<h3>The same questions before and after</h3>" + html.table(shown)
    wrong = [new for _, new in pairs if new["reply"].strip() != new["expected"]][:EXAMPLES]
    if wrong:
        rows = [
            [record["prompt"], f"right answer: {record['expected']} The model's: {record['reply']}"]
            for record in wrong
        ]
        yield html.folded("Examples of failures, with the whole story", html.table(rows))


def _question(prompt: str) -> str:
    return prompt.rpartition("Question: ")[2]

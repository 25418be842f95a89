"""The section of the report about instruction tuning: the loss, the answers before and after, what was answered wrong.

from shared_data.report_tuning import instruction_tuning
"""

from collections import defaultdict
from collections.abc import Iterator

from shared_data import report_html as html
from shared_data.metrics_log import MetricsLog
from shared_data.report_curves import training_curve
from shared_data.report_examples import example
from shared_data.runs import RunFolder
from shared_data.state_schema import Answers, read_state
from shared_data.summary import summary_rows

EXAMPLES = 4  # questions shown with their story and both answers, and as many that were answered wrong


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
    yield training_curve(run, "sft_loss", log, None, "The loss on the assistant's tokens.")
    answers = folder / "answers.json"
    if not answers.exists():
        return
    records = read_state(answers, Answers, "sft")
    by_kind: dict[str, list[bool]] = defaultdict(list)
    for record in records["after"]:
        by_kind[record["kind"]].append(record["reply"].strip() == record["expected"])
    yield "<h3>Right answers, by kind of question</h3>" + html.bars(
        [
            (kind, sum(right) / len(right), f"{sum(right)} of {len(right)}")
            for kind, right in sorted(by_kind.items())
        ]
    )
    pairs = list(zip(records["before"], records["after"], strict=False))
    yield "<h3>The same questions before and after</h3>"
    yield html.paragraph(
        "The stories are held out. The pretrained model has never seen a question: it goes on writing, or writes nothing that can be read."
    )
    for old, new in pairs[:EXAMPLES]:
        yield _answers(new, [("before tuning", old["reply"]), ("after", new["reply"])])
    wrong = [new for _, new in pairs if new["reply"].strip() != new["expected"]][:EXAMPLES]
    if wrong:
        examples = [_answers(record, [("the model's", record["reply"])]) for record in wrong]
        yield html.folded("Examples of failures", "".join(examples))


def _answers(record: dict[str, str], replies: list[tuple[str, str]]) -> str:
    """A question with its story, the right answer, and what was replied."""
    return example(record["prompt"], [("right answer", record["expected"]), *replies])

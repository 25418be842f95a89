"""An evaluation from the names of its tasks to their scores; a level brings `log_likelihoods` and `generate`.

data ── items ── prompts with shots ── ids ── responses of the model ── a value an item ── scores with error bars

scores = evaluate_tasks(log_likelihoods, generate, model, tokenizer, request)
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared_data.benchmarks.batches import LogLikelihood
from shared_data.benchmarks.few_shot import DELIMITER, build_prompts
from shared_data.benchmarks.items import GenerationItem, Item, PerplexityItem, Request
from shared_data.benchmarks.readers import data_paths, num_fewshot, read_splits
from shared_data.benchmarks.results import Key, Line, fingerprint, open_items
from shared_data.benchmarks.scores import Scores, aggregate, extract, in_order, score_item, with_groups
from shared_data.benchmarks.tasks import Task, find_tasks
from shared_data.benchmarks.token_requests import (
    TokenRequest,
    encode_request,
    encode_text,
    rolling_requests,
    truncated_left,
)
from shared_data.inference.chat import Generate
from shared_data.progress import progress
from shared_data.settings import BenchmarkSettings, DataSettings

LogLikelihoods = Callable[[Any, Sequence[TokenRequest], int, int], list[LogLikelihood]]
BATCHES_AT_ONCE = 16  # batches between two looks at the results: what is finished is then kept


@dataclass(frozen=True)
class Files:
    """Where an evaluation reads and leaves what the settings do not say: the options of the command."""

    data: tuple[str, ...] = ()  # TASK=PATH
    items: Path | None = None
    json: Path | None = None
    force: bool = False


@dataclass(frozen=True)
class Question:
    """An item with its prompt, as text and as ids; `number` counts the items of its task."""

    task: Task
    number: int
    item: Item
    requests: list[Request]
    token_requests: list[TokenRequest] = field(repr=False)
    inputs: str

    @property
    def key(self) -> Key:
        return self.task.name, self.number

    @property
    def length(self) -> int:
        """Tokens of its longest request."""
        return max(len(context) + len(continuation) for context, continuation in self.token_requests)


def evaluate_tasks(
    log_likelihoods: LogLikelihoods,
    generate: Generate,
    model: Any,
    tokenizer: Any,
    section: BenchmarkSettings,
    data: DataSettings,
    files: Files,
    model_id: Any,
) -> dict[str, Scores]:
    """The scores of each task, and of each group that was named. `model_id` changes when the model does.

    Raises `UserError` for unknown tasks, data that cannot be read or are malformed, and too few examples for the shots.
    """
    tasks, paths = find_tasks(section.tasks), data_paths(files.data)
    max_length = model.config.max_position_embeddings
    questions = [
        question
        for task in tasks
        for question in read_questions(
            task, section, paths.get(task.name), data, tokenizer, max_length, model_id
        )
    ]
    expected = {question.key: question.inputs for question in questions}
    with open_items(files.items, expected, files.force) as items:
        left = [question for question in questions if question.key not in items.lines]
        left.sort(key=lambda question: -question.length)
        done = len(questions) - len(left)
        with progress(len(questions), "benchmark", "items", done=done) as bar:
            answered = _answers(
                log_likelihoods, generate, model, tokenizer, left, section.batch_size, max_length
            )
            for question, responses in answered:
                items.add(item_line(question, responses))
                bar.update(1)
        return scores_of(section.tasks, tasks, items.lines.values())


def read_questions(
    task: Task,
    section: BenchmarkSettings,
    path: Path | None,
    data: DataSettings,
    tokenizer: Any,
    max_length: int,
    model_id: Any,
) -> Iterator[Question]:
    """The items of a task in their order, with their prompts."""
    records, task = read_splits(task, section, path, data)
    shots = num_fewshot(task, section)
    items = [task.item(record) for record in records[task.evaluation_split][: section.limit]]
    examples = [task.item(record) for record in records[task.shots_split]] if shots else []

    def render(messages: list[dict[str, str]]) -> str:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    template = render if section.apply_chat_template else None
    delimiter = "" if section.apply_chat_template else DELIMITER
    prompts = build_prompts(task, items, examples, shots, section.seed, template)
    for number, (item, prompt) in enumerate(zip(items, prompts, strict=True)):
        requests = item.requests(prompt, delimiter)
        if isinstance(item, PerplexityItem):
            ids = list(rolling_requests(tokenizer, item.target, max_length))
        elif isinstance(item, GenerationItem):
            ids = [TokenRequest(encode_text(tokenizer, requests[0].context), [])]
        else:
            ids = [encode_request(tokenizer, request) for request in requests]
        inputs = fingerprint(model_id, max_length, task.name, requests, item.target)
        yield Question(task, number, item, requests, ids, inputs)


def _answers(
    log_likelihoods: LogLikelihoods,
    generate: Generate,
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    batch_size: int,
    max_length: int,
) -> Iterator[tuple[Question, list[Any]]]:
    """Each question with the model's responses, a few batches at a time."""
    scored = [question for question in questions if question.task.generation is None]
    start = 0
    while start < len(scored):
        requests: list[TokenRequest] = []
        end = start
        while end < len(scored) and len(requests) < BATCHES_AT_ONCE * batch_size:
            requests += scored[end].token_requests
            end += 1
        responses = iter(log_likelihoods(model, requests, batch_size, max_length))
        for question in scored[start:end]:
            yield question, [next(responses) for _ in question.token_requests]
        start = end
    by_task: dict[str, list[Question]] = {}
    for question in questions:
        if question.task.generation is not None:
            by_task.setdefault(question.task.name, []).append(question)
    for written in by_task.values():
        for start in range(0, len(written), batch_size):
            batch = written[start : start + batch_size]
            texts = _texts(generate, model, tokenizer, batch, max_length)
            yield from ((question, [text]) for question, text in zip(batch, texts, strict=True))


def _texts(
    generate: Generate, model: Any, tokenizer: Any, questions: Sequence[Question], max_length: int
) -> list[str]:
    """Greedy completions of questions of one task, cut at the first stop string."""
    task = questions[0].task
    generation = task.generation
    assert generation is not None, f"{task.name} generates nothing"
    limit = generation.max_new_tokens
    contexts = [question.token_requests[0].context for question in questions]
    prompts = [truncated_left(context, max_length, limit, task.name) for context in contexts]
    # The library reads text without special tokens; one that ends a text is an end id of the model.
    stops = [text for text in generation.until if text not in tokenizer.special_tokens]
    written = generate(
        model, prompts, max_new_tokens=limit, temperature=0.0, stop_strings=stops, tokenizer=tokenizer
    )
    texts = []
    for ids in written:
        text = tokenizer.decode(ids, skip_special_tokens=True)
        for stop in generation.until:
            text = text.partition(stop)[0]
        texts.append(text)
    return texts


def item_line(question: Question, responses: list[Any]) -> Line:
    """One item as a line of the results."""
    task, item = question.task, question.item
    values = score_item(task, item, responses)
    filtered = responses
    if task.generation is not None:
        filtered = [extract(responses[0], how) for how in task.generation.extractions.values()]
    return {
        "task": task.name,
        "doc_id": question.number,
        "doc": item.doc,
        "target": item.target,
        "arguments": question.requests,
        "resps": [[response] for response in responses],
        "filtered_resps": filtered,
        "metrics": list(values),
        **values,
        "inputs": question.inputs,
    }


def scores_of(names: Sequence[str], tasks: Sequence[Task], lines: Any) -> dict[str, Scores]:
    """The scores of the tasks from their lines, then those of the groups among the names."""
    of_task: dict[str, list[Line]] = {task.name: [] for task in tasks}
    for line in lines:
        of_task[line["task"]].append(line)
    scores: dict[str, Scores] = {}
    for task in tasks:
        own = sorted(of_task[task.name], key=lambda line: line["doc_id"])
        found: Scores = {}
        for metric in task.metrics:
            found |= aggregate(metric, [line[metric] for line in own])
        scores[task.name] = in_order(found) | {"n": len(own)}
    return with_groups(names, scores)

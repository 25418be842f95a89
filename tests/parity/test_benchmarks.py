"""On the same files and model, every request, log-likelihood and score is lm-evaluation-harness's; levels 2 and 3 agree."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from shared_data.benchmarks.evaluation import Files, read_questions
from shared_data.benchmarks.items import Request
from shared_data.benchmarks.scores import aggregate, aggregate_group, extract, is_same
from shared_data.benchmarks.tasks import GROUPS, TASKS
from shared_data.benchmarks.token_requests import TokenRequest, encode_request, rolling_requests
from shared_data.files import read_json, write_json
from shared_data.runs import RunFolder
from shared_data.settings import BenchmarkSettings
from tests.parity.benchmark_cases import CASES, library_manager, library_tasks, write_cases
from tests.parity.inference_cases import small_run, trio
from tests.parity.recorder import ParityRecorder
from v2_handwritten.data_pipeline.tokenizer.tokenizer import load_tokenizer
from v2_handwritten.evaluation.benchmarks import harness as v2
from v2_handwritten.evaluation.benchmarks import log_likelihoods as v2_scoring
from v2_handwritten.models.checkpoint import load_model
from v3_numpy_deep.evaluation.benchmarks import harness as v3
from v3_numpy_deep.evaluation.benchmarks import log_likelihoods as v3_scoring

LEVELS = {"v2": v2.benchmark, "v3": v3.benchmark}
SHOTS = (0, 2)
POSITIONS = 400  # fewer than some prompts have tokens


@dataclass
class Found:
    """What one side has found: the scores as written to JSON, and the items by task."""

    scores: dict[str, dict[str, float]]
    items: dict[str, list[dict[str, Any]]]
    ids: list[tuple[list[int], list[int]]] = field(default_factory=list)  # of every request, in no order


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """An untrained model whose predictions differ widely, so that a small mistake changes them."""
    wide = ["model.initializer_range=0.4", "model.tie_word_embeddings=false"]
    overrides = [f"model.max_position_embeddings={POSITIONS}", "model.num_hidden_layers=2", *wide]
    return small_run(tmp_path_factory.mktemp("benchmarks"), *overrides)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_cases(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def ours(run: RunFolder, folders: dict[str, Path]) -> Callable[[str, int], Found]:
    """A level's results on all tasks, with so many shots."""

    @cache
    def evaluated(level: str, shots: int) -> Found:
        return evaluate_level(run, level, folders, num_fewshot=shots)

    return evaluated


def section_of(**changes: Any) -> BenchmarkSettings:
    """All items, and no chat template."""
    return BenchmarkSettings(**{"limit": None, "apply_chat_template": False, **changes})


def evaluate_level(run: RunFolder, level: str, folders: dict[str, Path], **changes: Any) -> Found:
    section = section_of(**{"tasks": list(folders), "batch_size": 8, **changes})
    settings = run.settings.model_copy(update={"benchmark": section})
    out = run.path / f"{level}-{changes}"
    data = tuple(f"{task}={path}" for task, path in folders.items())
    files = Files(data, out / "items.jsonl", out / "scores.json")
    LEVELS[level](settings, run, "pretrain", files)
    items: dict[str, list[dict[str, Any]]] = {}
    for line in map(json.loads, (out / "items.jsonl").read_text().splitlines()):
        items.setdefault(line["task"], []).append(line)
    return Found(read_json(out / "scores.json")["tasks"], items)


@pytest.fixture(scope="module")
def library(run: RunFolder, folders: dict[str, Path]) -> Callable[[int], Found]:
    """lm-evaluation-harness's results on the same files, read by `datasets`."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    class Recorder(HFLM):
        """Keeps the ids of every request."""

        def _loglikelihood_tokens(self, requests: Any, *args: Any, **options: Any) -> Any:
            recorded.extend((context, continuation) for _, context, continuation in requests)
            return super()._loglikelihood_tokens(requests, *args, **options)

    os.environ["DISABLE_MULTIPROC"] = "1"  # of its bootstrap
    recorded: list[tuple[list[int], list[int]]] = []
    manager = library_manager()
    model = Recorder(pretrained=str(run.model("pretrain")), device="cpu", batch_size=8)

    @cache
    def evaluated(shots: int) -> Found:
        recorded.clear()
        group = {"group": "published", "task": library_tasks(folders)}
        results = lm_eval.simple_evaluate(model, tasks=[group], num_fewshot=shots, task_manager=manager)
        assert results is not None
        return Found(results["results"], results["samples"], list(recorded))

    return evaluated


@pytest.mark.parametrize("shots", SHOTS)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("task", CASES)
def test_every_request_response_and_score_is_that_of_the_library(
    parity: ParityRecorder,
    ours: Callable[..., Found],
    library: Callable[..., Found],
    task: str,
    level: str,
    shots: int,
) -> None:
    found, expected = ours(level, shots), library(shots)
    items, samples = found.items[task], expected.items[task]
    if task == "gsm8k":
        first = [sample for sample in samples if sample["filter"] == "strict-match"]
        assert [item["resps"][0][0] for item in items] == [sample["resps"][0][0] for sample in first]
        assert [item["arguments"][0][0] for item in items] == [sample["arguments"][0][0] for sample in first]
        answers = [item["filtered_resps"][n] for n in range(2) for item in items]
        assert answers == [sample["filtered_resps"][0] for sample in samples]
        return
    assert len(items) == len(samples)
    for item, sample in zip(items, samples, strict=True):
        assert item["arguments"] == [list(argument) for argument in sample["arguments"]]
        assert item["target"] == sample["target"] or task == "winogrande"  # whose target is the ending there
        assert [r[1] for r in item["filtered_resps"]] == [r[1] for r in sample["filtered_resps"]]
        assert {name: item[name] for name in item["metrics"] if name != "perplexity"} == {
            name: sample[name] for name in item["metrics"] if name != "perplexity"
        }
    parity(
        component=f"benchmarks, {task}",
        quantity=f"log-likelihoods, {shots} shots",
        levels=f"{level}-lm_eval",
        actual=[r[0] for item in items for r in item["filtered_resps"]],
        expected=[r[0] for sample in samples for r in sample["filtered_resps"]],
        tolerance=3e-6,
    )
    scores = {name.partition(",")[0]: value for name, value in expected.scores[task].items() if "," in name}
    assert found.scores[task].pop("n") == expected.scores[task]["sample_len"]
    assert found.scores[task] == pytest.approx(scores, rel=1e-5, abs=1e-6)
    found.scores[task]["n"] = len(items)


@pytest.mark.parametrize("shots", SHOTS)
def test_context_and_continuation_are_the_same_ids(
    run: RunFolder, folders: dict[str, Path], library: Callable[..., Found], shots: int
) -> None:
    tokenizer, section = load_tokenizer(run.stage("tokenizer")), section_of(num_fewshot=shots)
    requests = [
        (request.context, request.continuation)
        for task, path in folders.items()
        if task != "gsm8k"
        for question in read_questions(
            TASKS[task], section, path, run.settings.data, tokenizer, POSITIONS, ""
        )
        for request in question.token_requests
    ]
    assert sorted(requests) == sorted(library(shots).ids)
    assert max(len(context) + len(continuation) for context, continuation in requests) > POSITIONS


ODD_REQUESTS = (
    ("", " milk"),  # nothing before the text but BOS
    ("", "<|endoftext|> milk"),  # which it may bring along
    ("Answer: ", "milk"),
    ("<|endoftext|>Answer:", " milk"),
    ("Answer:\n\n", "milk\nand tea"),
    ("答案：", " A"),
    ("x" * 900, " " + "y" * 50),  # truncated
)


@pytest.mark.parametrize("bos", [False, True], ids=["no BOS", "BOS"])
def test_odd_requests_begin_and_end_where_the_library_says(
    parity: ParityRecorder, run: RunFolder, tmp_path: Path, bos: bool
) -> None:
    """Empty contexts, spaces at their end, and a tokenizer that puts a token before each text, as Llama's does."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    folder = Path(shutil.copytree(run.model("pretrain"), tmp_path / "model"))
    if bos:
        add_bos(folder)
    library = HFLM(pretrained=str(folder), device="cpu", batch_size=4)
    tokenizer, model = load_tokenizer(folder), load_model(folder)
    requests = [encode_request(tokenizer, Request(*request)) for request in ODD_REQUESTS]
    for text, request in zip(ODD_REQUESTS, requests, strict=True):
        if text[0]:
            assert request == library._encode_pair(*text), text
    assert (requests[2].context[0] == library.prefix_token_id) == bos
    instances = [Instance("loglikelihood", {}, request, n) for n, request in enumerate(ODD_REQUESTS)]
    expected = library.loglikelihood(instances)
    found = v2_scoring.log_likelihoods(model, requests, batch_size=4, max_length=POSITIONS)
    assert [likelihood.is_greedy for likelihood in found] == [greedy for _, greedy in expected]
    parity(
        component="benchmarks, odd requests",
        quantity=f"log-likelihoods, {'with' if bos else 'without'} BOS",
        levels="v2-lm_eval",
        actual=[likelihood.sum for likelihood in found],
        expected=[total for total, _ in expected],
        tolerance=1.5e-6,
    )


def add_bos(folder: Path) -> None:
    """Let the tokenizer put <|endoftext|> before each text."""
    path = folder / "tokenizer.json"
    definition = read_json(path)
    id = next(token["id"] for token in definition["added_tokens"] if token["content"] == "<|endoftext|>")
    definition["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            "<|endoftext|>": {"id": "<|endoftext|>", "ids": [id], "tokens": ["<|endoftext|>"]}
        },
    }
    write_json(path, definition)
    config = folder / "tokenizer_config.json"
    write_json(config, read_json(config) | {"bos_token": "<|endoftext|>"})


@pytest.mark.parametrize("level", [v2_scoring, v3_scoring], ids=["v2", "v3"])
def test_log_likelihoods_are_those_of_each_request_alone(parity: ParityRecorder, level: Any) -> None:
    """Packed, with shared questions and rows, and truncated; also of continuations that share a row at different places."""
    _, model, arrays = trio("llama GQA")
    generator = np.random.default_rng(3)
    contexts = [generator.integers(4, 90, length).tolist() for length in (7, 12, 1, 30)]
    requests = [
        TokenRequest(context, generator.integers(4, 90, length).tolist())
        for context in contexts
        for length in (1, 1, 4, 2)
    ]
    requests += [TokenRequest([*contexts[0], 5], [6]), TokenRequest(contexts[0], [5, 6])]  # equal inputs
    max_length = 20
    subject = model if level is v2_scoring else arrays
    found = level.log_likelihoods(subject, requests, batch_size=5, max_length=max_length)
    expected, greedy = [], []
    for context, continuation in requests:
        ids = torch.tensor([context + continuation])[:, -max_length - 1 :]
        with torch.no_grad():
            log_probs = model(ids[:, :-1]).log_softmax(-1)[0, -len(continuation) :]
        expected.append(log_probs[range(len(continuation)), continuation].sum().item())
        greedy.append(log_probs.argmax(-1).tolist() == continuation)
    assert [likelihood.is_greedy for likelihood in found] == greedy
    parity(
        component="benchmarks",
        quantity="log-likelihoods of mixed requests",
        levels="v2" if level is v2_scoring else "v3-v2",
        actual=[likelihood.sum for likelihood in found],
        expected=expected,
        tolerance=1e-14,
    )


def test_a_continuation_that_greedy_decoding_writes_is_called_greedy() -> None:
    _, model, arrays = trio("llama GQA")
    context = [5, 6, 7]
    for _ in range(2):
        with torch.no_grad():
            context = [*context, int(model(torch.tensor([context]))[0, -1].argmax())]
    right = TokenRequest(context[:3], context[3:])
    wrong = TokenRequest(context[:3], [context[3], (context[4] + 1) % 90])
    for level, subject in ((v2_scoring, model), (v3_scoring, arrays)):
        found = level.log_likelihoods(subject, [right, wrong], batch_size=2, max_length=20)
        assert [likelihood.is_greedy for likelihood in found] == [True, False]


def test_the_table_of_tasks_is_that_of_the_library() -> None:
    """Data, splits, prompts' descriptions, metrics and default shots of all 183 tasks, and the members of the groups."""
    from lm_eval.tasks._yaml_loader import load_yaml

    index = library_manager().task_index
    for task in TASKS.values():
        if task.is_story_world:
            continue
        config = load_yaml(index[task.name].yaml_path, resolve_func=False)
        assert (task.dataset, task.config) == (config["dataset_path"], config.get("dataset_name"))
        for split in ("training_split", "validation_split", "test_split", "fewshot_split"):
            assert getattr(task, split) == config.get(split), (task.name, split)
        assert task.description == config.get("description", "")
        assert task.num_fewshot == config.get("num_fewshot", 0)
        assert task.takes_first_shots == (config.get("fewshot_config", {}).get("sampler") == "first_n")
        names = dict.fromkeys(metric["metric"] for metric in config["metric_list"])
        assert list(names) == list(dict.fromkeys(name.removesuffix("_flexible") for name in task.metrics))
    for group, members in GROUPS.items():
        found = library_members(index, group)
        assert sorted(found) == sorted(members), group


def library_members(index: Any, name: str) -> list[str]:
    """The tasks of a group or a tag of the library."""
    from lm_eval.tasks._yaml_loader import load_yaml

    entry = index[name]
    if entry.kind.name == "TASK":
        return [name]
    if entry.kind.name == "TAG":
        return sorted(entry.tags)
    members = load_yaml(entry.yaml_path, resolve_func=False)["task"]
    return [task for member in members for task in library_members(index, member)]


TEXTS = (
    "It is 2+2 = 4.\n#### 4",
    "#### -1,234.50.",
    "no number",
    "first 12, then $1,000.",
    "####7 and #### 8 and 9.",
    "#### 4 ",
    "",
)


@pytest.mark.parametrize("name", ["exact_match", "exact_match_flexible"])
def test_answers_are_extracted_and_compared_as_in_the_library(name: str) -> None:
    from lm_eval.api.metrics import exact_match_hf_evaluate
    from lm_eval.filters.extraction import RegexFilter
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(library_manager().task_index["gsm8k"].yaml_path, resolve_func=False)
    (metric,) = config["metric_list"]
    filters = config["filter_list"][int(name != "exact_match")]["filter"][0]
    regex = RegexFilter(filters["regex_pattern"], filters.get("group_select", 0))
    generation = TASKS["gsm8k"].generation
    assert generation is not None
    assert list(generation.until) == config["generation_kwargs"]["until"]
    same = []
    for text in TEXTS:
        answer = extract(text, generation.extractions[name])
        assert [answer] == regex.apply([[text]], [{}])[0]
        for target in ("so 4\n#### 4", "#### -1,234.50", "#### 1000", "#### 8"):
            options = {key: metric[key] for key in ("regexes_to_ignore", "ignore_case", "ignore_punctuation")}
            expected = exact_match_hf_evaluate([answer], [target], **options)["exact_match"]
            same.append(is_same(answer, target, generation))
            assert same[-1] == bool(expected), (answer, target)
    assert 0 < sum(same) < len(same)


@pytest.mark.parametrize("length", [1, 9, 10, 11, 20, 25])
def test_a_long_text_is_cut_into_the_windows_of_the_library(length: int) -> None:
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    class Digits:
        """A tokenizer of one token a character."""

        config: ClassVar[dict[str, Any]] = {}
        eos_token_id = 99

        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            return [int(character) for character in text]

        def decode(self, ids: list[int]) -> str:
            return "<end>"

    text = "".join(str(n % 10) for n in range(length))
    found = list(rolling_requests(Digits(), text, max_length=10))
    expected = map(make_disjoint_window, get_rolling_token_windows([int(c) for c in text], 99, 10, 1))
    assert found == [(context, continuation) for context, continuation in expected]
    assert "".join(str(id) for request in found for id in request.continuation) == text


def test_scores_of_a_group_are_those_of_the_library() -> None:
    from lm_eval.api.metrics import aggregate_subtask_metrics, pooled_sample_stderr

    scores = [
        aggregate("acc", values) | {"n": len(values)}
        for values in ([1.0, 0.0, 1.0], [0.0, 1.0], [1.0, 1.0, 0.0, 0.0, 0.0])
    ]
    sizes = [3, 2, 5]
    found = aggregate_group(scores)
    assert found["acc"] == pytest.approx(aggregate_subtask_metrics([s["acc"] for s in scores], sizes))
    assert found["acc_stderr"] == pytest.approx(
        pooled_sample_stderr([s["acc_stderr"] for s in scores], sizes)
    )
    assert found["n"] == 10
    assert aggregate_group([*scores, {"acc": 1.0, "acc_stderr": None, "n": 1}])["acc_stderr"] is None

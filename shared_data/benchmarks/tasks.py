"""The benchmarks that can be evaluated: where each has its data, how it becomes a prompt, what is measured.

Names, splits, metrics and prompts are lm-evaluation-harness 0.4.13's (`arc_easy`, `mmlu_anatomy`, `ceval-valid_law`), so that scores can
be compared with published ones. The `story_world` tasks are our own. A group (`mmlu`) stands for its subjects.

    find_tasks(["arc_easy", "mmlu_stem"])
"""

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from shared_data.benchmarks import formats, prompts
from shared_data.benchmarks.items import Item
from shared_data.benchmarks.subjects import CEVAL, CMMLU, MMLU
from shared_data.errors import UserError

Record = dict[str, Any]
STORY_WORLD = "story_world"


@dataclass(frozen=True)
class Extraction:
    """How an answer is found in generated text: the `index`-th match of a pattern, or "[invalid]" where there is none.

    name: what lm-evaluation-harness calls this filter.
    """

    name: str
    pattern: str
    index: int = 0


@dataclass(frozen=True)
class Generation:
    """Greedy text up to a stop string, and the answers that are extracted from it, by the name of their metric.

    ignored: patterns taken out of both sides before they are compared, without regard to case.
    """

    until: tuple[str, ...]
    extractions: dict[str, Extraction]
    ignored: tuple[str, ...] = ()
    max_new_tokens: int = 256


@dataclass(frozen=True)
class Task:
    """One benchmark. `dataset` and `config` name its data on the hub; splits are None where it has none.

    fewshot_split: where shots come from, if not from the first of training, validation and test split that it has.
    takes_first_shots: always the first examples, in order, instead of a draw for each item.
    """

    name: str
    dataset: str
    config: str | None
    format: Callable[[Record], Record]
    item: Callable[[Record], Item]
    metrics: tuple[str, ...]
    training_split: str | None = None
    validation_split: str | None = None
    test_split: str | None = None
    fewshot_split: str | None = None
    takes_first_shots: bool = False
    description: str = ""
    num_fewshot: int = 0
    generation: Generation | None = None

    @property
    def evaluation_split(self) -> str:
        """The split whose items are scored."""
        split = self.test_split or self.validation_split
        assert split is not None, f"{self.name} has nothing to evaluate on"
        return split

    @property
    def shots_split(self) -> str:
        """The split that shots are drawn from."""
        split = self.fewshot_split or self.training_split or self.validation_split or self.test_split
        assert split is not None, f"{self.name} has no examples"
        return split

    @property
    def excludes_item(self) -> bool:
        """Whether the item itself is kept out of its shots, as lm-evaluation-harness decides it: it compares these two names.

        Where a task names neither, both are None and equal: harmless, since training items differ. LAMBADA has a test split only and names
        no split for shots, so that an item may be among its own shots.
        """
        return self.fewshot_split == self.test_split

    @property
    def is_story_world(self) -> bool:
        """Whether the data are made here."""
        return self.dataset == STORY_WORLD


_LETTERS = {"test_split": "test", "fewshot_split": "dev", "takes_first_shots": True}
_TRAIN_AND_VALIDATION = {"training_split": "train", "validation_split": "validation"}
_BOTH = ("acc", "acc_norm")
_GSM8K = Generation(
    until=("Question:", "</s>", "<|im_end|>"),
    extractions={
        "exact_match": Extraction("strict-match", r"#### (\-?[0-9\.\,]+)"),
        "exact_match_flexible": Extraction(
            "flexible-extract", r"(-?[$0-9.,]{2,})|(-?[0-9]+)", index=-1
        ),  # flexible-extract
    },
    ignored=(",", r"\$", "(?s).*#### ", r"\.$"),
)
_ANSWER = Generation(
    until=("\n",), extractions={"exact_match": Extraction("none", r"(?s)\S(?:.*\S)?")}, max_new_tokens=32
)


def _arc(name: str, config: str) -> Task:
    splits = {**_TRAIN_AND_VALIDATION, "test_split": "test"}
    return Task(name, "allenai/ai2_arc", config, formats.arc, prompts.arc, _BOTH, **splits)  # type: ignore[arg-type]


def _single_tasks() -> list[Task]:
    """The tasks without subjects."""
    train_validation: dict[str, Any] = _TRAIN_AND_VALIDATION
    shots: dict[str, Any] = {"test_split": "test", "fewshot_split": "train"}
    f, p = formats, prompts
    return [
        Task(STORY_WORLD, STORY_WORLD, None, f.story_world, p.story_world, _BOTH, **shots),
        Task(
            "story_world_questions",
            STORY_WORLD,
            None,
            f.story_world_question,
            p.story_world_question,
            ("exact_match",),
            **shots,
            generation=_ANSWER,
        ),
        Task(
            "story_world_stories",
            STORY_WORLD,
            None,
            f.story_world_question,
            p.story_world_story,
            ("word_perplexity", "byte_perplexity", "bits_per_byte"),
            test_split="test",
        ),
        _arc("arc_easy", "ARC-Easy"),
        _arc("arc_challenge", "ARC-Challenge"),
        Task("hellaswag", "Rowan/hellaswag", None, f.hellaswag, p.hellaswag, _BOTH, **train_validation),
        Task(
            "winogrande",
            "allenai/winogrande",
            "winogrande_xl",
            f.winogrande,
            p.winogrande,
            ("acc",),
            **train_validation,
        ),
        Task("piqa", "baber/piqa", None, f.piqa, p.piqa, _BOTH, **train_validation),
        Task(
            "lambada_openai",
            "EleutherAI/lambada_openai",
            "default",
            f.lambada,
            p.lambada,
            ("perplexity", "acc"),
            test_split="test",
        ),
        Task(
            "gsm8k",
            "openai/gsm8k",
            "main",
            f.gsm8k,
            p.gsm8k,
            tuple(_GSM8K.extractions),
            training_split="train",
            **shots,
            num_fewshot=5,
            generation=_GSM8K,
        ),
    ]


def _subject_tasks() -> list[Task]:
    """MMLU, C-Eval and CMMLU, a task a subject."""
    f, p = formats, prompts
    letters: dict[str, Any] = _LETTERS
    chinese: dict[str, Any] = {**_LETTERS, "test_split": None, "validation_split": "val"}
    tasks = []
    for name in [name for group in MMLU.values() for name in group]:
        text = (
            f"The following are multiple choice questions (with answers) about {name.replace('_', ' ')}.\n\n"
        )
        tasks.append(
            Task(f"mmlu_{name}", "cais/mmlu", name, f.mmlu, p.mmlu, ("acc",), **letters, description=text)
        )
    for name, title in CEVAL.items():
        text = f"以下是中国关于{title}的单项选择题，请选出其中的正确答案。\n\n"
        full, dataset = f"ceval-valid_{name}", "ceval/ceval-exam"
        tasks.append(Task(full, dataset, name, f.ceval, p.ceval, _BOTH, **chinese, description=text))
    for name, title in CMMLU.items():
        text = f"以下是关于{title}的单项选择题，请直接给出正确答案的选项。\n\n"
        full, dataset = f"cmmlu_{name}", "haonan-li/cmmlu"
        tasks.append(Task(full, dataset, name, f.cmmlu, p.cmmlu, _BOTH, **letters, description=text))
    return tasks


TASKS: dict[str, Task] = {task.name: task for task in [*_single_tasks(), *_subject_tasks()]}
GROUPS: dict[str, list[str]] = {
    **{group: [f"mmlu_{name}" for name in names] for group, names in MMLU.items()},
    "mmlu": [f"mmlu_{name}" for names in MMLU.values() for name in names],
    "ceval-valid": [f"ceval-valid_{name}" for name in CEVAL],
    "cmmlu": [f"cmmlu_{name}" for name in CMMLU],
}


def find_tasks(names: Iterable[str]) -> list[Task]:
    """The tasks of these names, groups in their place as all of their subjects, each once. Raises `UserError` for an unknown name."""
    found: dict[str, Task] = {}
    for name in names:
        check_task(name)
        found |= {member: TASKS[member] for member in GROUPS.get(name, [name])}
    return list(found.values())


def check_task(name: str) -> None:
    """Raise `UserError` for an unknown name, with the known ones, the closest first."""
    if name in TASKS or name in GROUPS:
        return
    plain = [task.name for task in _single_tasks()] + list(GROUPS)
    close = difflib.get_close_matches(name, [*TASKS, *GROUPS], n=3, cutoff=0.5)
    known = [*close, *(task for task in plain if task not in close)]
    raise UserError(
        f"there is no benchmark {name!r}; choose of {', '.join(known)}, or a subject such as mmlu_anatomy"
    )

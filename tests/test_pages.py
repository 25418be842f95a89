"""What pages and module docstrings point at exists: links, headings, paths, tests; and the README's Python runs."""

import ast
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from v2_handwritten.data_pipeline.tokenizer.bpe_train import train_bpe
from v2_handwritten.models.checkpoint import save_model
from v2_handwritten.models.transformer import ModelConfig, new_model

ROOT = Path(__file__).parent.parent
TOP = ("v1_quick", "v2_handwritten", "v3_numpy_deep", "shared_data", "tests")
FILES = [
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md", "*.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
]
PAGES = [path for path in FILES if path.suffix == ".md" and path.exists()]
MODULES = [path for path in FILES if path.suffix == ".py" and path.exists()]
LINK = re.compile(r"\]\(([^)\s]+)\)")
SUFFIX = r"\.(?:py|md|toml|svg)\b"
# In backticks any path; without them one that begins at the root of the repository.
PATH = re.compile(
    rf"`((?:[\w.-]+/)+[\w-]+{SUFFIX})|((?<![\w./-])(?:{'|'.join(TOP)})/(?:[\w-]+/)*(?:[\w-]+{SUFFIX})?)"
)
TEST = re.compile(r"(tests/(?:\w+/)*\w+\.py)::(\w+)")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def without_code(text: str) -> str:
    """A page without its fenced blocks, which show commands and output."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


@cache
def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", without_code(page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def missing_links(page: Path, text: str) -> list[str]:
    missing = []
    for target in LINK.findall(without_code(text)):
        if re.match(r"\w+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            missing.append(target)
    return missing


def missing_paths(file: Path, text: str) -> list[str]:
    """Paths are written from the root of the repository, from the level, or from the folder of the file."""
    roots = [ROOT, file.parent, *(ROOT / top for top in TOP)]
    found = (quoted or plain for quoted, plain in PATH.findall(without_code(text)))
    return [path for path in found if not any((root / path).exists() for root in roots)]


def missing_tests(text: str) -> list[str]:
    """Tests that a page names for its exercise or its example."""
    return [
        f"{file}::{test}"
        for file, test in TEST.findall(text)
        if not (ROOT / file).exists() or f"def {test}(" not in (ROOT / file).read_text(encoding="utf-8")
    ]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not missing_links(page, text)
    assert not missing_paths(page, text)
    assert not missing_tests(text)


def test_every_path_in_a_module_docstring_exists() -> None:
    wrong = {}
    for module in MODULES:
        docstring = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
        if missing := missing_paths(module, docstring):
            wrong[name(module)] = missing
    assert not wrong


def test_missing_files_headings_paths_and_tests_are_found() -> None:
    page = ROOT / "README.md"
    assert missing_links(page, "[a](nowhere.md) [b](README.md#nowhere) [c](README.md)") == [
        "nowhere.md",
        "README.md#nowhere",
    ]
    assert missing_paths(page, "`v2_handwritten/nowhere.py` `models/transformer.py`") == [
        "v2_handwritten/nowhere.py"
    ]
    assert missing_tests("`tests/test_pages.py::test_of_nothing`") == ["tests/test_pages.py::test_of_nothing"]


@pytest.mark.parametrize("level", ["v2_handwritten", "v3_numpy_deep"])
def test_the_python_of_the_readme_runs_at_levels_2_and_3(level: str, tmp_path: Path) -> None:
    tokenizer = train_bpe(
        ["Once there was a fox. Once there was a cat."], 270, special_tokens=["<|endoftext|>"]
    )
    tokenizer.save(tmp_path)
    end = tokenizer.end_of_text_id
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=16, num_hidden_layers=1, eos_token_id=end
    )
    save_model(new_model(config), tmp_path)
    page = (ROOT / "README.md").read_text(encoding="utf-8").partition("## From Python")[2]
    code = (
        page.partition("```python\n")[2].partition("```")[0].replace("runs/v2/tiny/pretrain", str(tmp_path))
    )
    if level == "v3_numpy_deep":
        for ours, theirs in (
            ("v2_handwritten", level),
            ("import torch", "import numpy"),
            ("torch.tensor", "numpy.array"),
        ):
            code = code.replace(ours, theirs)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["logits"].shape == (1, len(tokenizer.encode("Once")), tokenizer.vocab_size)
    assert names["losses"][-1] < names["losses"][0] / 2

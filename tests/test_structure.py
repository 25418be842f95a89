"""The structure that keeps three levels one product, read from the syntax trees, so that nothing is imported.

Levels 2 and 3 are twins: the same files, public names, signatures and order. What reads the same in two levels stands once in
`shared_data`. Level 1 is the library call and never the longer one. Imports point one way. A deliberate exception stands below, with
its reason.
"""

import ast
import copy
import io
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEVELS = ("v1_quick", "v2_handwritten", "v3_numpy_deep")
# Each room may import those before it, and itself.
ROOMS = ("data_pipeline", "models", "inference", "pretrain", "evaluation", "finetune", "align")
# Kernels and autograd stand beside: blocks choose among kernels, and these have the blocks' signatures.
# The stages of levels 2 and 3 read alike; that is their point.
STAGE_FILES = (
    "data_pipeline/prepare.py",
    "pretrain/train.py",
    "pretrain/components/training.py",
    "finetune/sft_train.py",
    "align/rm_train.py",
    "align/dpo_train.py",
    "align/ppo_train.py",
    "align/grpo_train.py",
)

# Files that stand in one hand-written level only, with the reason.
ONLY_IN_ONE_LEVEL: dict[str, str] = {
    "pretrain/components/precision.py": "mixed precision needs bfloat16 and float16 products, which NumPy has not",
    "models/gradient_checkpointing.py": "level 3 frees what it does not need as it walks back",
    "inference/inspection.py": "a tool of the project, and tools are level 2's",
    "inference/quantized_matrices.py": "NumPy has no product of a row and codes, and no compiler to make one",
    "models/sharding.py": "torch's kernels use all cores by themselves",
}

# Public names whose presence or parameters differ between levels 2 and 3: {path: {name: reason}}.
EXCEPTIONS: dict[str, dict[str, str]] = {
    "models/blocks/attention.py": {"softmax": "level 3 has it among the operations of its engine"},
    "models/blocks/attention_mask.py": {
        "AttentionMask.__init__": "NumPy's arrays have no device",
        "AttentionMask.is_causal": "asked by torch's own kernel only",
    },
    "models/transformer.py": {
        "CausalModel.compute_dtype": "mixed precision is level 2's",
        "CausalModel.dropout_generator": "torch's generators belong to a device and are made anew for it",
    },
    "pretrain/components/muon.py": {
        "orthogonalize": "level 2 takes all matrices of a shape at once, which pays on a GPU; level 3 one",
    },
    "pretrain/components/training.py": {"model_inputs": "NumPy's arrays have no device"},
}

# Functions of more than eight lines with the same syntax tree in two levels: {name: reason}.
COPIES: dict[str, str] = {}
LONGEST_COPY = 8  # lines

# Files of level 1 that are longer than those of level 2: {path: reason}.
LONGER: dict[str, str] = {
    "cli.py": "one import makes the libraries quiet before they are loaded",
    "data_pipeline/tokenizer/tokenizer.py": "the library builds the tokenizers of some GGUF files wrongly, so it gets our definition",
}

THEORY_PAGES = (
    "data_pipeline/processing/deduplication.md",
    "data_pipeline/tokenizer/bpe_train.md",
    "models/blocks/embeddings.md",
    "models/blocks/rope.md",
    "models/blocks/normalization.md",
    "models/blocks/attention.md",
    "models/blocks/attention_patterns.md",
    "models/blocks/feed_forward.md",
    "models/blocks/mixture_of_experts.md",
    "models/blocks/latent_attention.md",
    "models/blocks/sparse_indexer.md",
    "models/blocks/cross_entropy.md",
    "models/transformer.md",
    "models/log_probs.md",
    "models/reward_model.md",
    "models/peft/lora.md",
    "models/peft/qlora.md",
    "models/quantization/quantization.md",
    "models/quantization/gptq.md",
    "models/quantization/awq.md",
    "pretrain/components/training.md",
    "pretrain/components/optimizers.md",
    "pretrain/components/muon.md",
    "pretrain/components/gradient_clipping.md",
    "pretrain/components/precision.md",
    "inference/sampling.md",
    "inference/beam_search.md",
    "inference/kv_cache.md",
    "inference/scoring.md",
    "inference/inspection.md",
    "evaluation/benchmarks/harness.md",
    "align/algorithms/reward_loss.md",
    "align/algorithms/dpo.md",
    "align/algorithms/rollout.md",
    "align/algorithms/ppo.md",
    "align/algorithms/grpo.md",
)


def python_files(level: str) -> set[str]:
    """Relative paths of a level's files; the engine of level 3 and the kernels of level 2 have no twin by design."""
    paths = {path.relative_to(ROOT / level).as_posix() for path in (ROOT / level).rglob("*.py")}
    return {path for path in paths if not path.startswith(("autograd/", "kernels/"))}


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def signature(function: ast.FunctionDef) -> str:
    """Parameters without annotations; the library that a default comes from may differ."""
    arguments = copy.deepcopy(function.args)
    for argument in ast.walk(arguments):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    return ast.unparse(arguments).replace("torch.", "").replace("np.", "")


def public_names(path: Path) -> dict[str, str]:
    """Public functions, classes and methods of a file in order, each with its parameters (none for a class)."""
    names: dict[str, str] = {}
    for node in parse(path).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            names[node.name] = signature(node)
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            names[node.name] = ""
            for member in node.body:
                if isinstance(member, ast.FunctionDef) and (
                    member.name == "__init__" or not member.name.startswith("_")
                ):
                    names[f"{node.name}.{member.name}"] = signature(member)
    return names


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    """All functions and methods of a file, those inside others not by themselves."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Module | ast.ClassDef):
            yield from (member for member in node.body if isinstance(member, ast.FunctionDef))


class _Normalize(ast.NodeTransformer):
    """Without docstrings, annotations and the level's name."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.returns = None
        if ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        self.generic_visit(node)
        return ast.Assign([node.target], node.value or ast.Constant(None), lineno=0)


def normalized(function: ast.FunctionDef) -> str:
    text = ast.unparse(_Normalize().visit(copy.deepcopy(function)))
    for level in LEVELS:
        text = text.replace(level, "level")
    return text


def code_lines(path: Path) -> int:
    """Lines of a file that hold code: no blank lines, comments or docstrings."""
    text = path.read_text(encoding="utf-8")
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.NAME, tokenize.NUMBER, tokenize.STRING, tokenize.OP):
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and ast.get_docstring(node) is not None
        ):
            lines.difference_update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return len(lines)


def imported_modules(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Each imported module, with the names taken from it."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, [alias.name for alias in node.names]


def test_levels_2_and_3_have_the_same_files() -> None:
    one_sided = python_files("v2_handwritten") ^ python_files("v3_numpy_deep")
    assert one_sided == set(ONLY_IN_ONE_LEVEL)


@pytest.mark.parametrize("path", sorted(python_files("v2_handwritten") & python_files("v3_numpy_deep")))
def test_twins_share_names_signatures_and_order(path: str) -> None:
    v2, v3 = (public_names(ROOT / level / path) for level in LEVELS[1:])
    excepted = EXCEPTIONS.get(path, {})
    assert set(excepted) == {name for name in v2.keys() | v3.keys() if v2.get(name) != v3.get(name)}
    assert [name for name in v2 if name not in excepted] == [name for name in v3 if name not in excepted]


def test_no_function_reads_the_same_in_two_levels() -> None:
    places: dict[str, set[str]] = defaultdict(set)
    names: dict[str, str] = {}
    for level in LEVELS:
        for path in (ROOT / level).rglob("*.py"):
            if path.relative_to(ROOT / level).as_posix() in STAGE_FILES:
                continue
            for function in functions(path):
                text = normalized(function)
                if len(text.splitlines()) > LONGEST_COPY:
                    places[text].add(level)
                    names[text] = f"{path.relative_to(ROOT)}:{function.name}"
    copies = {names[text] for text, levels in places.items() if len(levels) > 1}
    assert copies == set(COPIES)


@pytest.mark.parametrize("path", sorted(python_files("v1_quick") & python_files("v2_handwritten")))
def test_level_1_is_not_longer_than_its_twin(path: str) -> None:
    lengths = [code_lines(ROOT / level / path) for level in LEVELS[:2]]
    assert lengths[0] <= lengths[1] or path in LONGER, f"{lengths[0]} lines, level 2 has {lengths[1]}"


def test_no_level_imports_another_and_rooms_point_one_way() -> None:
    for package in (*LEVELS, "shared_data"):
        for path in (ROOT / package).rglob("*.py"):
            room = path.relative_to(ROOT / package).parts[0]
            for module, _ in imported_modules(path):
                root, _, inside = module.partition(".")
                assert root not in LEVELS or root == package, f"{path} imports {module}"
                target = inside.split(".")[0]
                if root == package and room in ROOMS and target in ROOMS:
                    assert ROOMS.index(target) <= ROOMS.index(room), f"{path} imports {module}"


def test_level_1_imports_nothing_private() -> None:
    for path in (ROOT / "v1_quick").rglob("*.py"):
        for module, names in imported_modules(path):
            private = [
                name for name in (*module.split("."), *names) if name.startswith("_") and name != "__future__"
            ]
            assert not private, f"{path} imports {private} of {module}"


def test_every_core_module_of_level_2_has_its_theory_page() -> None:
    assert not [page for page in THEORY_PAGES if not (ROOT / "v2_handwritten" / page).is_file()]

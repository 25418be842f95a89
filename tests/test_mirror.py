"""The three levels are one product: same files, same public names, same signatures, same order.

The rule is read from the syntax trees, so nothing is imported. `v2` and `v3` carry the same set; `v1` may carry fewer
(a library does more in one call), never others. A deliberate exception stands below, with its reason.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEVELS = ("v1_quick", "v2_handwritten", "v3_numpy_deep")

# Files that exist in one hand-written level only, with the reason.
ONLY_IN_ONE_LEVEL: dict[str, str] = {
    "pretrain/components/precision.py": "mixed precision needs bfloat16 and float16 products, which NumPy has not (levels 1 and 2)",
}

# Public names that one hand-written level does not carry: {path: {name: reason}}.
NAME_EXCEPTIONS: dict[str, dict[str, str]] = {
    "models/transformer.py": {
        "Transformer.compute_dtype": "mixed precision is for levels 1 and 2",
        "Transformer.dropout_generator": "torch's generators belong to a device and are made anew for it; NumPy's do not",
    },
    "models/reward_model.py": {
        "RewardModel.compute_dtype": "mixed precision is for levels 1 and 2",
        "RewardModel.dropout_generator": "torch's generators belong to a device and are made anew for it; NumPy's do not",
    },
}

# Names whose parameters differ between levels: {path: {name: reason}}.
SIGNATURE_EXCEPTIONS: dict[str, dict[str, str]] = {
    "pretrain/components/muon.py": {
        "hidden_apart": "the groups of torch's optimizers carry no names, so level 1 asks the model",
        "orthogonalize": "level 2 takes all matrices of a shape at once, which pays on a GPU; level 3 one",
        "Muon.step": "torch's optimizers may be given a closure",
    },
    "models/blocks/attention.py": {
        "causal_mask": "NumPy's arrays have no device",
        "causal_attention": "torch's kernel is an alternative at level 2; level 3 hands on the plan of its tiles instead",
    },
    "models/transformer.py": {
        "Transformer.__init__": "level 1 may wrap a model of the library; level 2 has a choice of kernels",
        "Gpt2Body.forward": "activation checkpointing wraps each block, at level 2 only",
        "LlamaBody.forward": "activation checkpointing wraps each block, at level 2 only",
    },
    "models/reward_model.py": {"RewardModel.__init__": "level 1 may wrap a model of the library"},
}


def python_files(level: str) -> set[str]:
    """Relative paths of a level's files; the engine of level 3 has no counterpart by design."""
    paths = {path.relative_to(ROOT / level).as_posix() for path in (ROOT / level).rglob("*.py")}
    return {path for path in paths if not path.startswith("autograd/")}


def _default(expression: ast.expr) -> str:
    """`torch.float32` and `np.float32` are the same default."""
    return ast.unparse(expression).removeprefix("torch.").removeprefix("np.")


def parameters(function: ast.FunctionDef) -> list[str]:
    """Parameter names with their kind and default, as text.

    Annotations may differ (each level has its own Tensor), and so may the library that a type comes from.
    """
    arguments = function.args
    positional = arguments.posonlyargs + arguments.args
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    described = [
        parameter.arg + ("" if default is None else "=" + _default(default))
        for parameter, default in zip(positional, defaults, strict=True)
    ]
    if arguments.vararg:
        described.append("*" + arguments.vararg.arg)
    elif arguments.kwonlyargs:
        described.append("*")
    for parameter, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        described.append(parameter.arg + ("" if default is None else "=" + _default(default)))
    if arguments.kwarg:
        described.append("**" + arguments.kwarg.arg)
    return described


def public_names(path: Path) -> dict[str, list[str]]:
    """Public functions, classes and methods of a file in order, each with its parameters (none for a class)."""
    names: dict[str, list[str]] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            names[node.name] = parameters(node)
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            names[node.name] = []
            for member in node.body:
                if isinstance(member, ast.FunctionDef) and (
                    member.name == "__init__" or not member.name.startswith("_")
                ):
                    names[f"{node.name}.{member.name}"] = parameters(member)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Name) and target.id.isupper() and not target.id.startswith("_"):
                    names[target.id] = []
    return names


def test_levels_2_and_3_have_the_same_files() -> None:
    one_sided = python_files("v2_handwritten") ^ python_files("v3_numpy_deep")
    assert one_sided == set(ONLY_IN_ONE_LEVEL), (
        "a file stands in one of v2 and v3 only, and no reason is given"
    )


def test_level_1_has_no_file_of_its_own() -> None:
    assert python_files("v1_quick") <= python_files("v2_handwritten")


@pytest.mark.parametrize("path", sorted(python_files("v2_handwritten") & python_files("v3_numpy_deep")))
def test_levels_2_and_3_carry_the_same_names_in_the_same_order(path: str) -> None:
    v2, v3 = (public_names(ROOT / level / path) for level in LEVELS[1:])
    excepted = NAME_EXCEPTIONS.get(path, {})
    assert set(excepted) <= set(v2) ^ set(v3), "an exception that is no longer needed"
    assert [name for name in v2 if name not in excepted] == [name for name in v3 if name not in excepted]


@pytest.mark.parametrize("path", sorted(python_files("v1_quick")))
def test_level_1_carries_no_other_names(path: str) -> None:
    v1, v2 = (public_names(ROOT / level / path) for level in LEVELS[:2])
    excepted = NAME_EXCEPTIONS.get(path, {})
    others = [name for name in v1 if name not in v2 and name not in excepted]
    assert not others
    shared = [name for name in v1 if name in v2]
    assert shared == [name for name in v2 if name in v1], "the order differs"


@pytest.mark.parametrize("path", sorted(python_files("v2_handwritten")))
def test_signatures_agree(path: str) -> None:
    v2 = public_names(ROOT / "v2_handwritten" / path)
    excepted = SIGNATURE_EXCEPTIONS.get(path, {})
    differing = set()
    for level in ("v1_quick", "v3_numpy_deep"):
        if (ROOT / level / path).exists():
            other = public_names(ROOT / level / path)
            differing |= {name for name in v2 if name in other and other[name] != v2[name]}
    assert differing == set(excepted)


def test_no_level_imports_another() -> None:
    packages = {*LEVELS, "shared_data"}
    for package in packages:
        allowed = {package, "shared_data"}
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                modules = []
                if isinstance(node, ast.Import):
                    modules = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.module:
                    modules = [node.module]
                for module in modules:
                    root = module.split(".")[0]
                    assert root not in packages or root in allowed, f"{path} imports {module}"


def test_every_core_module_of_level_2_has_its_theory_page() -> None:
    missing = [page for page in THEORY_PAGES if not (ROOT / "v2_handwritten" / page).is_file()]
    assert not missing


THEORY_PAGES = [
    "data_pipeline/processing/cleaning.md",
    "data_pipeline/processing/deduplication.md",
    "data_pipeline/tokenizer/bpe_train.md",
    "models/blocks/embeddings.md",
    "models/blocks/rope.md",
    "models/blocks/normalization.md",
    "models/blocks/attention.md",
    "models/blocks/feed_forward.md",
    "models/transformer.md",
    "pretrain/components/optimizers.md",
    "pretrain/components/muon.md",
    "pretrain/components/schedulers.md",
    "pretrain/components/gradient_clipping.md",
    "pretrain/components/precision.md",
    "pretrain/components/training_state.md",
    "pretrain/data_loader.md",
    "inference/scoring.md",
    "finetune/chat_data.md",
    "models/peft/lora.md",
    "models/peft/qlora.md",
    "models/reward_model.md",
    "align/algorithms/log_probabilities.md",
    "align/algorithms/reward_loss.md",
    "align/algorithms/dpo.md",
    "align/algorithms/rollout.md",
    "align/algorithms/ppo.md",
    "align/algorithms/grpo.md",
    "align/exam.md",
    "inference/sampling.md",
    "inference/kv_cache.md",
]

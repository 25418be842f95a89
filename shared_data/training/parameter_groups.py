"""Which parameters an optimizer treats alike: decayed or not, moved by Muon or by AdamW; the same for torch's and level 3's modules.

groups = parameter_groups(model, weight_decay=0.1)
"""

from typing import Any

# Modules that read or write tokens, positions and scores; their matrices are tables of vectors and not maps between hidden states.
NOT_HIDDEN = frozenset({"embed_tokens", "lm_head", "wte", "wpe", "score"})


def parameter_groups(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices, embeddings among them, are decayed; biases and the weights of norms are not.

    These are all the parameters of one dimension and the biases of experts, and the rule picks what the Trainer of transformers picks by name. What is
    frozen, as under adapters, is in neither: it needs no moments.
    """
    groups: list[dict[str, Any]] = [
        {"names": [], "parameters": [], "weight_decay": weight_decay},
        {"names": [], "parameters": [], "weight_decay": 0.0},
    ]
    for name, parameter in model.named_parameters():  # a tied matrix is listed once
        if not parameter.requires_grad:
            continue
        is_decayed = parameter.data.ndim >= 2 and not name.endswith("bias")
        group = groups[0 if is_decayed else 1]
        group["names"].append(name)
        group["parameters"].append(parameter)
    return groups


def is_hidden(name: str, parameter: Any) -> bool:
    """Whether Muon moves this parameter: a matrix between hidden states."""
    is_matrix = parameter.data.ndim == 2 and not name.endswith("bias")
    return is_matrix and NOT_HIDDEN.isdisjoint(name.split("."))


def hidden_apart(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same groups, each without its hidden matrices, and a last one of these, marked `hidden`."""
    hidden: dict[str, Any] = {"names": [], "parameters": [], "hidden": True}
    others = []
    for group in groups:
        kept: dict[str, Any] = {**group, "names": [], "parameters": []}
        for name, parameter in zip(group["names"], group["parameters"], strict=True):
            target = hidden if is_hidden(name, parameter) else kept
            target["names"].append(name)
            target["parameters"].append(parameter)
            target.setdefault("weight_decay", group["weight_decay"])
        others.append(kept)
    return [*others, hidden] if hidden["names"] else others

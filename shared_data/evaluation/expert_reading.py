"""Which expert reads what: for each layer of experts, to which of them each kind of segment of held-out stories is sent.

The kinds come from the story world (shared_data/story_world/segments.py), the experts from a level's
`chosen_experts(model, ids)`, and both are counted here. How far a layer specialises is one number, the mutual information of
kind and expert,

    I(kind; expert) = Σ p(kind, expert) log2 [p(kind, expert) / (p(kind) p(expert))]        in bits.

Level 1 has no such table: the library's trainer does not hand out what its routers choose. Theory: shared_data/story_world/segments.md.

    uv run python -c "from shared_data.evaluation.expert_reading import *; print(mutual_information(np.array([[3, 1], [1, 3]])))"
"""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from shared_data.corpus.splits import read_documents
from shared_data.files import write_json
from shared_data.runs import RunFolder
from shared_data.story_world.segments import KINDS, segments, token_kinds

EXPERTS = "experts.json"  # in the folder of the stage
STORIES = 64  # held-out ones: some ten thousand tokens

# A level's function of a model and the ids of one text: for each layer of experts, the k experts that it sends each token to.
ChosenExperts = Callable[[Any, Sequence[int]], Int[np.ndarray, "layers T k"]]


def mutual_information(counts: Int[np.ndarray, "kinds E"]) -> float:
    """How many bits the expert of an assignment tells of its kind of segment: 0 where all kinds are spread alike.

    At most log2(E / k): a token goes to k different experts, so they are never certain from its kind. Cover and Thomas 2006, equation 2.28.
    """
    joint = counts / counts.sum()
    independent = joint.sum(1, keepdims=True) * joint.sum(0)
    seen = joint > 0
    return float((joint[seen] * np.log2(joint[seen] / independent[seen])).sum())


def count_assignments(
    kinds: Int[np.ndarray, " T"], experts: Int[np.ndarray, "T k"], num_kinds: int, num_experts: int
) -> Int[np.ndarray, "kinds E"]:
    """How many assignments of tokens of each kind went to each expert; a token has k of them."""
    counts = np.zeros((num_kinds, num_experts), dtype=np.int64)
    np.add.at(counts, (kinds[:, None], experts), 1)
    return counts


def shuffled_information(
    kinds: Int[np.ndarray, " T"], experts: Int[np.ndarray, "T k"], num_kinds: int, num_experts: int
) -> float:
    """The bits that remain when kinds are dealt to the tokens at random: what a sample of this size shows by chance."""
    shuffled = np.random.default_rng(0).permutation(kinds)
    return mutual_information(count_assignments(shuffled, experts, num_kinds, num_experts))


def read_experts(
    chosen_experts: ChosenExperts, model: Any, tokenizer: Any, texts: Iterable[str], count: int = STORIES
) -> dict[str, Any]:
    """The contents of experts.json, from the first `count` texts that are stories; nothing where none is, or the model has no experts.

    stories, tokens; kinds: the number of tokens of each kind; layers: of each layer with experts its number, bits, bits_by_chance,
    most_bits = log2(E / k), load (the share of all assignments that each expert gets), and shares (the same for each kind).
    """
    layers = [layer for layer in range(model.config.num_hidden_layers) if model.config.is_sparse(layer)]
    stories = _tokens_with_kinds(tokenizer, texts, count, model.config.max_position_embeddings - 1)
    if not layers or not stories:
        return {}
    first, names = model.config.bos_token_id, list(KINDS)
    before = [] if first is None else [first]  # as a document begins
    chosen = [chosen_experts(model, [*before, *ids])[:, len(before) :] for ids, _ in stories]
    kinds = np.array([names.index(kind) for _, of_story in stories for kind in of_story])
    experts = np.concatenate(chosen, axis=1)  # [layers, T, k]
    sizes = dict(zip(names, np.bincount(kinds, minlength=len(names)).tolist(), strict=True))
    return {
        "stories": len(stories),
        "tokens": len(kinds),
        "kinds": {name: size for name, size in sizes.items() if size},
        "layers": [
            {"layer": layer, **_layer_reading(kinds, of_layer, model.config.num_local_experts)}
            for layer, of_layer in zip(layers, experts, strict=True)
        ],
    }


def write_expert_reading(
    chosen_experts: ChosenExperts, model: Any, tokenizer: Any, run: RunFolder
) -> dict[str, float]:
    """Write experts.json into the folder of the stage `pretrain`, from the validation stories; returns the mean bits of its layers.

    Nothing without experts, and where the text is not of the story world.
    """
    file = run.stage("pretrain") / EXPERTS
    file.unlink(missing_ok=True)  # of an earlier run, with another model
    if run.settings.data.source != "story_world" or not model.config.num_local_experts:
        return {}
    texts = (document.text for document in read_documents(run.documents("validation")))
    reading = read_experts(chosen_experts, model, tokenizer, texts)
    if not reading:
        return {}
    write_json(file, reading)
    return {"expert_bits": float(np.mean([layer["bits"] for layer in reading["layers"]]))}


def _tokens_with_kinds(
    tokenizer: Any, texts: Iterable[str], count: int, most: int
) -> list[tuple[list[int], list[str]]]:
    """The ids of stories with the kind of each, at most the first `most` of a story."""
    stories = ((text, spans) for text in texts if (spans := segments(text)))
    found = []
    for text, spans in islice(stories, count):
        ids = tokenizer.encode(text, allow_special=False)
        found.append((ids[:most], token_kinds(text, spans, tokenizer.byte_lengths, ids)[:most]))
    return found


def _layer_reading(
    kinds: Int[np.ndarray, " T"], experts: Int[np.ndarray, "T k"], num_experts: int
) -> dict[str, Any]:
    """What the report shows of one layer."""
    names = list(KINDS)
    counts = count_assignments(kinds, experts, len(names), num_experts)
    return {
        "bits": mutual_information(counts),
        "bits_by_chance": shuffled_information(kinds, experts, len(names), num_experts),
        "most_bits": math.log2(num_experts / experts.shape[1]),
        "load": _shares(counts.sum(0)).tolist(),
        "shares": {name: _shares(row).tolist() for name, row in zip(names, counts, strict=True) if row.any()},
    }


def _shares(counts: Int[np.ndarray, " E"]) -> Float[np.ndarray, " E"]:
    return counts / counts.sum()

"""The section of the report about a mixture of experts: how busy each expert was during training, and what it reads.

Both are there for runs of levels 2 and 3; level 1's trainer logs neither.

from shared_data.report_experts import experts
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from shared_data import report_html as html
from shared_data.evaluation.expert_reading import EXPERTS
from shared_data.plots import FEWEST_POINTS, plot_shares
from shared_data.report_comparison import training_log
from shared_data.runs import RunFolder
from shared_data.state_schema import ExpertReading, read_state
from shared_data.story_world.segments import KINDS
from shared_data.training.expert_load import expert_shares


def experts(run: RunFolder) -> Iterator[str]:
    """Nothing where the log has no loads and the stage `pretrain` left no experts.json."""
    load, path = _load_over_training(run), run.path / "pretrain" / EXPERTS
    reading = read_state(path, ExpertReading, "pretrain") if path.is_file() else None
    if not load and not reading:
        return
    yield html.heading("The experts")
    if load:
        yield html.paragraph(
            "A router assigns each token to a few experts of its layer. A band is the share of the assignments that one expert gets; "
            "in a balanced layer all bands are equally broad and end at the dashed lines."
        )
        yield html.side_by_side(load)
    if reading:
        yield from _reading(reading)


def _load_over_training(run: RunFolder) -> list[str]:
    """A figure for each layer whose load the log has often enough."""
    steps: list[int] = []
    loads: dict[int, list[list[float]]] = defaultdict(list)
    for row in training_log(run).rows():
        if shares := expert_shares(row):
            steps.append(row["step"])
            for place, of_layer in shares.items():
                loads[place].append(of_layer)
    if len(steps) < FEWEST_POINTS:
        return []
    figures = []
    for layer, of_all_steps in zip(_sparse_layers(run), loads.values(), strict=False):
        path = run.path / "report" / f"expert_load_{layer}.svg"
        plot_shares(steps, np.array(of_all_steps), path, title=f"Layer {layer}: load of its experts")
        figures.append(html.figure(path))
    return figures


def _sparse_layers(run: RunFolder) -> list[int]:
    """The numbers of the layers with experts, which the log counts from the first of them."""
    model = run.settings.model
    dense = model.mlp_only_layers or []
    return [layer for layer in range(model.num_hidden_layers) if layer not in dense]


def _reading(reading: dict[str, Any]) -> Iterator[str]:
    """A table for each layer: kinds of segment, and the share of each that each expert gets."""
    yield "<h3>Which expert reads what</h3>"
    yield html.paragraph(
        f"The {reading['tokens']:,} tokens of {reading['stories']:,} held-out stories, by the kind of segment they belong to. A row says "
        "where the tokens of a kind are sent; it adds up to 100%. The bluer, the more."
    )
    for layer in reading["layers"]:
        yield html.paragraph(
            f"Layer {layer['layer']}: a token's expert tells {layer['bits']:.3f} bits of its kind, at most {layer['most_bits']:.3f} are "
            f"possible; were the kinds dealt out at random, it would be {layer['bits_by_chance']:.3f}."
        )
        yield html.shaded_table(_rows(layer, reading["kinds"]), _head(layer["load"]))
    yield html.folded(
        "What the kinds are", html.table([(name, KINDS[name]) for name in reading["kinds"] if name in KINDS])
    )


def _head(load: Sequence[float]) -> list[str]:
    return ["kind", "tokens", *(f"expert {expert}" for expert in range(len(load)))]


def _rows(layer: Mapping[str, Any], sizes: Mapping[str, int]) -> Iterator[tuple[str, str, Sequence[float]]]:
    """All tokens, and each kind: its name, how many tokens it has, the shares."""
    yield "all", f"{sum(sizes.values()):,}", layer["load"]
    for kind, shares in layer["shares"].items():
        yield kind, f"{sizes[kind]:,}", shares

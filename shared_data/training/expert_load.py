"""How busy the experts of a mixture are: numbers for the metrics log.

load_metrics([[3, 1], [2, 2]])   # two layers of two experts, by the tokens that each was sent
"""

from collections.abc import Iterable, Mapping
from typing import Any

PREFIX = "expert_load/"  # of the share of one expert, by layer and expert


def load_metrics(loads: Iterable[Iterable[Any]]) -> dict[str, float]:
    """`expert_load/<layer>/<expert>`, the share of a layer's assignments, and `expert_load_max`, the busiest over the mean (1: balanced).

    Layers count from the first that has experts. Nothing where there are none.
    """
    metrics: dict[str, float] = {}
    busiest = []
    for layer, of_layer in enumerate(loads):
        counts = [float(count) for count in of_layer]
        total = sum(counts) or 1.0
        metrics |= {f"{PREFIX}{layer}/{expert}": count / total for expert, count in enumerate(counts)}
        busiest.append(max(counts) * len(counts) / total)
    return metrics | ({"expert_load_max": max(busiest)} if busiest else {})


def expert_shares(row: Mapping[str, Any]) -> dict[int, list[float]]:
    """The shares of a row of the metrics log, for each layer."""
    shares: dict[int, list[float]] = {}
    for key, value in row.items():
        if key.startswith(PREFIX):
            shares.setdefault(int(key.split("/")[1]), []).append(value)
    return shares

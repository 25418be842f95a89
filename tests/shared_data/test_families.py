"""The page of the families says what the table says."""

from collections.abc import Iterator
from pathlib import Path

from shared_data.model_files.families import FAMILIES, Family

PAGE = Path(__file__).parents[2] / "shared_data" / "model_files" / "families.md"
# Attention, by what `layer_types` and `window` of an entry say.
_WINDOWS = {
    "all": "one window for all layers, or none",
    "listed": "a kind for each layer",
    "alternating": "window and full in turn",
    "none": "full",
}


def _has(family: Family, name: str) -> str:
    """Whether a model of the family always, sometimes or never has a thing."""
    if name in family.blocks:
        return "yes" if family.blocks[name] else "no"
    return "a choice" if name in family.names else "no"


def _norms(family: Family) -> Iterator[str]:
    yield "LayerNorm" if "layer_norm_epsilon" in family.names else "RMSNorm"
    if family.blocks.get("norm_offset"):
        yield "1 + w"
    if family.blocks.get("post_norms"):
        yield "after each layer, too"
    if family.blocks.get("qk_norm"):
        yield "of queries and keys"


def _attention(family: Family) -> Iterator[str]:
    yield "indexed" if family.layer_types == ("indexed_attention",) else _WINDOWS[family.window]
    if "kv_lora_rank" in family.names:
        yield "latent"
    if family.blocks.get("attention_sinks"):
        yield "learned sinks"
    if "attn_logit_softcapping" in family.names:
        yield "soft caps"
    if "no_rope_layers" in family.names:
        yield "some layers without rotation"


def _feed_forward(family: Family) -> str:
    if family.blocks.get("clamped_experts"):
        return "clamped experts"
    if "num_local_experts" in family.names:
        return f"experts, {family.blocks.get('scoring_func', 'softmax')}"
    gated = "gated, " if family.architecture != "GPT2LMHeadModel" else ""
    return gated + " or ".join(family.activations)


def table() -> str:
    """The rows of the page, from the table of the families."""
    rows = [
        "| `model_type` | class | attention | biases of attention | feed-forward | norms |",
        "|---|---|---|---|---|---|",
    ]
    for name, family in FAMILIES.items():
        cells = [
            f"`{name}`",
            f"`{family.architecture}`",
            ", ".join(_attention(family)),
            _has(family, "attention_bias"),
            _feed_forward(family),
            ", ".join(_norms(family)),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def test_the_table_of_the_page_is_that_of_the_code() -> None:
    assert table() in PAGE.read_text(encoding="utf-8"), f"the page needs this table:\n{table()}"


def test_the_page_lists_every_field_of_a_family() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in Family.__dataclass_fields__ if f"`{name}`" not in text] == []

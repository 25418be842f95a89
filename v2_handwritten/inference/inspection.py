"""Look inside a model: what it expects next at each position, where each head reads, the residual stream between the blocks.

The forward pass is the ordinary one, with the plain kernels. The attention weights are those of models/blocks/attention.py, computed
once more from the same inputs: the faster kernels never form them.

Levels 1 and 3 have no such file: it is a tool. (transformers: `output_attentions=True, output_hidden_states=True`.) Theory: inspection.md.

    uv run v2 look "Once upon a time"
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shared_data.corpus.splits import read_documents
from shared_data.errors import UserError
from shared_data.evaluation.look_patterns import print_patterns
from shared_data.inference.look import chosen_maps, print_look, some_of, token_name
from shared_data.inference.prompts import encode_prompt
from shared_data.model_files.config import ModelConfig
from shared_data.plots import plot_attention
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from v2_handwritten.data_pipeline.tokenizer.tokenizer import Tokenizer, load_tokenizer
from v2_handwritten.inference.loading import load_with_tokenizer
from v2_handwritten.models.blocks.attention import Gpt2Attention, LlamaAttention, attention_weights
from v2_handwritten.models.blocks.latent_attention import LatentAttention
from v2_handwritten.models.blocks.sparse_indexer import Indexer, IndexInputs, index_scores, select_keys
from v2_handwritten.models.blocks.transformer_block import Gpt2Block, LlamaBlock
from v2_handwritten.models.transformer import Transformer

STORY_TOKENS = 24  # of a held-out text, in the picture of the report


@dataclass(frozen=True)
class Inspection:
    """What a model computes for a text of T tokens.

    log_probs: row t is the natural logarithm of the probability of each token after tokens 0…t.
    attentions: row t of a map is how much position t reads from each position, by layer and head; it sums to 1.
    hidden_states: the input of each block and, last, what the output matrix reads: the last block's output after the final norm,
        as in transformers.
    """

    log_probs: Float[Tensor, "T V"]
    attentions: Float[Tensor, "layers H T T"]
    hidden_states: Float[Tensor, "layers_and_1 T C"]


@torch.no_grad()
def inspect(model: Transformer, ids: Sequence[int]) -> Inspection:
    """One forward pass without dropout, by the plain formulas whatever `model.kernels` says; the model is left as it was.

    Raises `UserError` for no ids, or more than the model has positions.
    """
    if not len(ids):
        raise UserError("there is no token to look at; pass at least one")
    attentions: list[Tensor] = []
    hidden_states: list[Tensor] = []

    def record_input(block: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        hidden_states.append(inputs[0][0])

    def record_weights(
        attention: Gpt2Attention | LlamaAttention | LatentAttention, inputs: tuple[Any, ...]
    ) -> None:
        x, shared = inputs[:2]
        q, k, _ = attention.project(x, shared)
        attentions.append(attention_weights(q, k, shared.mask)[0].flatten(0, 1))  # [H, T, T]

    hooks = []
    for module in model.body.modules():
        if isinstance(module, Gpt2Block | LlamaBlock):
            hooks.append(module.register_forward_pre_hook(record_input))
        elif isinstance(module, Gpt2Attention | LlamaAttention | LatentAttention):
            hooks.append(module.register_forward_pre_hook(record_weights))
    was_training, kernels = model.training, model.kernels
    model.eval()
    model.kernels = "plain"
    try:
        last = model.hidden_states(torch.as_tensor(ids, device=model.lm_head.weight.device)[None])
        logits = model.logits(last)[0]
    finally:
        model.kernels = kernels
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_probs = logits - logits.logsumexp(-1, keepdim=True)
    return Inspection(log_probs, torch.stack(attentions), torch.stack([*hidden_states, last[0]]))


def look_command(
    settings: Settings,
    run: RunFolder,
    text: str,
    model_name: str | Path,
    layer: int | None,
    head: int | None,
    picture: Path,
) -> None:
    """Command `look`: print the tokens, what was expected after each, and the attention maps, which are drawn into `picture` too."""
    model, tokenizer = load_with_tokenizer(settings, run, model_name)
    layers = chosen_maps("layer", layer, model.config.num_hidden_layers)
    heads = chosen_maps("head", head, model.config.num_attention_heads)
    ids = encode_prompt(model, tokenizer, text)
    inspection = inspect(model, ids)
    name = partial(token_name, tokenizer)
    log_probs = inspection.log_probs.float().cpu().numpy()
    maps = inspection.attentions.float().cpu().numpy()[layers][:, heads]
    plot_attention(maps, [name(id) for id in ids], layers, heads, picture)
    print_look(name, ids, log_probs, maps, layers, heads)


@torch.no_grad()
def selected_rows(model: Transformer, ids: Sequence[int]) -> dict[str, Bool[np.ndarray, " T"]]:
    """Which of T tokens the last one reads, by the choice of the indexer, for each layer that has one (shared_data/evaluation/kept_answers.py)."""
    rows: dict[str, Bool[np.ndarray, " T"]] = {}
    T = len(ids)

    def record_selection(name: str, indexer: Indexer, _: Any, index: IndexInputs) -> None:
        scores = index_scores(index.queries[:, -1:], index.keys, index.weights[:, -1:])
        allowed = torch.ones(1, 1, T, dtype=torch.bool, device=scores.device)  # the last token may see all
        keys = select_keys(scores, allowed, indexer.index_topk).flatten().cpu().numpy()
        rows[name] = np.isin(np.arange(T), keys)

    hooks = [
        module.register_forward_hook(partial(record_selection, f"indexer {module.index_topk}, layer {layer}"))
        for layer, block in enumerate(
            module for module in model.body.modules() if isinstance(module, Gpt2Block | LlamaBlock)
        )
        for module in block.modules()
        if isinstance(module, Indexer)
    ]
    try:
        if hooks:
            model.eval().hidden_states(torch.as_tensor(ids, device=model.lm_head.weight.device)[None])
    finally:
        for hook in hooks:
            hook.remove()
    return rows


def patterns_command(settings: Settings, run: RunFolder, model_name: str | Path | None) -> None:
    """Command `look --patterns`: how often the attention of the settings' layers, or of a model's, sees the answer of a question."""
    if model_name is None:  # fixed patterns have learned nothing, so the run's tokenizer is enough
        tokenizer = load_tokenizer(run.tokenizer)
        print_patterns(ModelConfig.from_settings(settings.model, tokenizer.vocab_size), tokenizer)
    else:
        model, tokenizer = load_with_tokenizer(settings, run, model_name)
        print_patterns(model.config, tokenizer, partial(selected_rows, model))


def draw_attention(model: Transformer, tokenizer: Tokenizer, run: RunFolder, picture: Path) -> None:
    """The maps of some layers and heads over the beginning of the first held-out document, for the report; nothing without one."""
    document = next(read_documents(run.documents(run.settings.evaluate.split)), None)
    if document is None:
        return
    ids = encode_prompt(model, tokenizer, document.text)
    ids = ids[: min(STORY_TOKENS, model.config.max_position_embeddings)]
    layers, heads = some_of(model.config.num_hidden_layers), some_of(model.config.num_attention_heads)
    maps = inspect(model, ids).attentions.float().cpu().numpy()[layers][:, heads]
    plot_attention(maps, [token_name(tokenizer, id) for id in ids], layers, heads, picture)

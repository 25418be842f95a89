"""Gradient checkpointing: keep only a block's input for the backward pass, and compute the block again there (Chen et al. 2016).

A model of L blocks then holds the activations of one block and L inputs at a time, and pays with one more forward pass.

Level 1: transformers' `gradient_checkpointing_enable`. Level 3 has none: its models are small.

    model.gradient_checkpointing = True
"""

from dataclasses import replace
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from v2_handwritten.models.blocks.attention import SharedInputs


def run_checkpointed(
    block: nn.Module, x: Float[Tensor, "B T C"], shared: SharedInputs
) -> Float[Tensor, "*rows C"]:
    """`block(x, shared)` without keeping its activations."""
    if not x.requires_grad:  # from frozen embeddings: autograd would not record the block
        x = x.detach().requires_grad_()
    side = _side_outputs(shared)
    y, *added = _Checkpoint.apply(x, block, side)
    for routing in side.routings or []:  # derivatives go through what `apply` returned
        cast(Any, shared.routings).append(replace(routing, logits=added.pop(0)))
    if shared.indexer_losses is not None:
        shared.indexer_losses.extend(added)
    return y


def _side_outputs(shared: SharedInputs) -> SharedInputs:
    """The same inputs, with lists of their own for what a block adds to the loss: router logits and indexer losses."""
    routings, losses = shared.routings, shared.indexer_losses
    return replace(
        shared,
        routings=None if routings is None else [],
        indexer_losses=None if losses is None else [],
    )


def _outputs(y: Tensor, side: SharedInputs) -> tuple[Tensor, ...]:
    """All that a block has computed."""
    return y, *(routing.logits for routing in side.routings or []), *(side.indexer_losses or [])


class _Checkpoint(torch.autograd.Function):
    """Forward without a graph; backward computes the block again, with the same dropout masks, and walks back through it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, block: nn.Module, shared: SharedInputs) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x)
        ctx.block, ctx.shared = block, shared
        ctx.generator_state = shared.generator.get_state() if shared.generator is not None else None
        return _outputs(block(x, shared), shared)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        shared = _side_outputs(ctx.shared)
        generator: Any = shared.generator
        state_after_forward = generator.get_state() if generator is not None else None
        if generator is not None:
            generator.set_state(ctx.generator_state)
        with torch.enable_grad():
            outputs = _outputs(ctx.block(x, shared), shared)
        if generator is not None:
            generator.set_state(state_after_forward)
        torch.autograd.backward(outputs, list(gradients))  # adds to the gradients of the block's parameters
        return x.grad, None, None

"""Gradient checkpointing: keep only a block's input for the backward pass, and compute the block again there (Chen et al. 2016).

A model of L blocks then holds the activations of one block and L inputs at a time, and pays with one more forward pass.

Level 1: transformers' `gradient_checkpointing_enable`. Level 3 has none: its models are small.

    model.gradient_checkpointing = True
"""

from typing import Any

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
    return _Checkpoint.apply(x, block, shared)


class _Checkpoint(torch.autograd.Function):
    """Forward without a graph; backward computes the block again, with the same dropout masks, and walks back through it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, block: nn.Module, shared: SharedInputs) -> Tensor:
        ctx.save_for_backward(x)
        ctx.block, ctx.shared = block, shared
        ctx.generator_state = shared.generator.get_state() if shared.generator is not None else None
        return block(x, shared)

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, None, None]:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        generator = ctx.shared.generator
        state_after_forward = generator.get_state() if generator is not None else None
        if generator is not None:
            generator.set_state(ctx.generator_state)
        with torch.enable_grad():
            y = ctx.block(x, ctx.shared)
        if generator is not None:
            generator.set_state(state_after_forward)
        torch.autograd.backward(y, d_y)  # adds to the gradients of the block's parameters
        return x.grad, None, None

"""Gradient checkpointing: keep only a block's input for the backward pass, and compute the block again there (Chen et al. 2016).

A model of L blocks then holds the activations of one block and L inputs at a time, and pays with one more forward pass.

Level 1: transformers' `gradient_checkpointing_enable`. Level 3 has none: its models are small.

    model.gradient_checkpointing = True
"""

from dataclasses import replace
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
    y, *router_logits = _Checkpoint.apply(x, block, shared)
    if router_logits:  # the balancing loss is derived through them
        routings: Any = shared.routings
        routings[-1] = replace(routings[-1], logits=router_logits[0])
    return y


class _Checkpoint(torch.autograd.Function):
    """Forward without a graph; backward computes the block again, with the same dropout masks, and walks back through it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, block: nn.Module, shared: SharedInputs) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x)
        ctx.block, ctx.shared = block, shared
        ctx.generator_state = shared.generator.get_state() if shared.generator is not None else None
        before = len(shared.routings or [])
        y = block(x, shared)
        return y, *(routing.logits for routing in (shared.routings or [])[before:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        routings: list[Any] | None = None if ctx.shared.routings is None else []
        shared = replace(ctx.shared, routings=routings)
        generator = shared.generator
        state_after_forward = generator.get_state() if generator is not None else None
        if generator is not None:
            generator.set_state(ctx.generator_state)
        with torch.enable_grad():
            y = ctx.block(x, shared)
        if generator is not None:
            generator.set_state(state_after_forward)
        # Adds to the gradients of the block's parameters.
        torch.autograd.backward([y, *(routing.logits for routing in routings or [])], list(gradients))
        return x.grad, None, None

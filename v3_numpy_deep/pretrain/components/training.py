"""The training engine: batches, forward, backward, clip, learning rate, update; again. Every stage that trains uses it.

A stage hands in its model, its batches and `step(batch) -> loss, metrics`. One step of gradient accumulation is one large batch, cut up
to fit the memory: its loss is the mean over all items of all pieces, so each piece counts by its items (training.md has the story
of that bug). A step may also be a generator that yields several losses, each of which becomes an optimizer step: PPO and GRPO
learn more than once from the completions that they sampled.

Resume, checkpoints, progress, logs and Ctrl-C are `shared_data.training.training_run`. Level 1's trainers have such a loop inside;
level 2 is the same loop over torch, with mixed precision and on any device.

    metrics = Training("pretrain", settings, run).fit(model, batches, step)
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from shared_data.errors import UserError
from shared_data.model_names import tokenizer_of
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from shared_data.training.data_loader import Batch, check_token_batch
from shared_data.training.data_order import DataOrder
from shared_data.training.schedulers import learning_rate
from shared_data.training.training_run import Metrics, TrainingRun
from v3_numpy_deep.autograd import Array, Module, Tensor, no_grad
from v3_numpy_deep.models.blocks.mixture_of_experts import MixtureOfExperts
from v3_numpy_deep.models.checkpoint import load_weights, save_model
from v3_numpy_deep.models.packing import Packing
from v3_numpy_deep.models.transformer import CausalModel, Transformer
from v3_numpy_deep.pretrain.components.gradient_clipping import clip_gradients
from v3_numpy_deep.pretrain.components.muon import make_optimizer
from v3_numpy_deep.pretrain.components.optimizers import AdamW

Loss = tuple[Tensor, Metrics]


@runtime_checkable
class Batches(Protocol):
    """What the engine needs of data; a batch has `num_items` (what its mean loss is a mean over) and `num_tokens`."""

    order: DataOrder

    def next_batch(self) -> Any:
        """The next batch, without end."""


class Training:
    """The training of one stage, with the optimizer and the schedule of its settings."""

    def __init__(self, stage: str, settings: Settings, run: RunFolder) -> None:
        self.stage, self.settings, self.run = stage, settings, run
        self.section: Any = getattr(settings, stage)

    def fit(
        self,
        model: Any,  # what is trained: a language or reward model, or a ModuleDict of several
        batches: Batches,
        step: Callable[[Any], Loss] | Callable[[Any], Iterator[Loss]],
        *,
        save: Callable[[Path], None] | None = None,
        load: Callable[[Path], None] | None = None,
        dropout: bool = True,
        **callbacks: Any,
    ) -> Metrics:
        """Train until `max_steps`, from the newest checkpoint if there is one; returns the metrics of the last step and totals.

        save(folder), load(folder): the weights of a checkpoint; by default those of `model` as a Hugging Face folder.
        callbacks: `evaluate`, `sample` and `shown` of `TrainingRun`. Raises `UserError` when a loss is no longer a number.
        """
        section = self.section
        self.model = model
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.parameters, self.optimizer = parameters, make_optimizer(model, section)
        _configure(model)
        if section.bf16 or section.fp16:
            raise UserError(
                "NumPy multiplies matrices in 32 bits only; leave bf16 and fp16 out, or use level 1 or 2"
            )

        def write(folder: Path) -> None:
            save(folder) if save else save_model(model, folder, tokenizer_of(self.run, self.stage))
            self.optimizer.save(folder / "optimizer.safetensors")

        def restore(folder: Path) -> None:
            self.optimizer.load(folder / "optimizer.safetensors")
            load(folder) if load else load_weights(model, folder)

        with TrainingRun(
            self.stage, self.settings, self.run, write=write, restore=restore, data=batches.order, **callbacks
        ) as training:
            for number in training.steps():
                model.train(dropout)
                _warm_up_indexers(model, number < getattr(section, "index_warmup_steps", 0))
                _seed_dropout(model, section.seed, number)
                self.optimizer.learning_rate = learning_rate(
                    number,
                    peak=section.learning_rate,
                    max_steps=section.max_steps,
                    warmup_steps=section.warmup_steps,
                    lr_scheduler_type=section.lr_scheduler_type,
                    **section.lr_scheduler_kwargs,
                )
                metrics, tokens = self._update(batches, step)
                metrics["learning_rate"] = self.optimizer.learning_rate
                training.record(metrics, tokens)
        model.eval()
        return training.summary()

    def _update(self, batches: Batches, step: Callable[[Any], Any]) -> tuple[Metrics, int]:
        """The metrics of one update, and the tokens it worked through."""
        batch = batches.next_batch()
        outcome = step(batch)
        if isinstance(outcome, Iterator):
            logs = [metrics | self._optimizer_step(loss) for loss, metrics in outcome]
            names = dict.fromkeys(name for log in logs for name in log)  # one that overflowed has no norm
            metrics = {name: fmean(log[name] for log in logs if name in log) for name in names}
            return metrics, int(metrics.pop("tokens"))
        pieces = [batch, *(batches.next_batch() for _ in range(self.section.gradient_accumulation_steps - 1))]
        items = sum(piece.num_items for piece in pieces)
        metrics = {}
        for piece in pieces:
            share = piece.num_items / items  # a sum of means, weighted so that every item counts the same
            loss, log = outcome if piece is batch else step(piece)
            (loss * share).backward()
            for name, value in {"loss": loss.item(), **log}.items():
                metrics[name] = metrics.get(name, 0.0) + share * value
        return metrics | self._clip_and_move(), sum(piece.num_tokens for piece in pieces)

    def _optimizer_step(self, loss: Tensor) -> Metrics:
        """Backward and update; the loss and the gradient norm."""
        loss.backward()
        return {"loss": loss.item()} | self._clip_and_move()

    def _clip_and_move(self) -> Metrics:
        """Clip the gradients, move the parameters, drop the gradients; the norm before clipping."""
        norm = clip_gradients(self.parameters, self.section.max_grad_norm)
        if math.isfinite(norm):
            self.optimizer.step()
            balance_experts(self.model, self.section.router_bias_update_speed)
        self.optimizer.zero_grad()
        return {"grad_norm": norm}


def balance_experts(model: Any, speed: float) -> None:
    """Move the biases of routers that are balanced without a loss (DeepSeek-V3), by what the experts had to do since the last time."""
    for module in model.modules():
        if isinstance(module, MixtureOfExperts) and module.is_balanced_by_bias:
            module.update_bias(speed)


def _configure(model: Module) -> None:
    """What the loss of every model among the modules adds: the balance of experts, what indexers learn."""
    for module in model.modules():
        if isinstance(module, CausalModel):
            module.balances_experts = module.config.has_balancing_loss
            module.trains_indexers = module.config.index_topk > 0


def _warm_up_indexers(model: Any, dense: bool) -> None:
    """Whether attention still reads everything, and the indexers learn from that (DeepSeek-V3.2, section 2.1.1)."""
    for module in model.modules():
        if isinstance(module, CausalModel):
            module.dense_indexer = dense


def train_step(
    model: Transformer, optimizer: AdamW, batch: Int[Array, "B T1"], max_grad_norm: float = 1.0
) -> float:
    """One optimizer step on token ids [B, T + 1], each predicted from those before it; the mean loss in nats, for notebooks.

    Raises `UserError` for a batch of another type or shape, and for ids that the model has not.
    """
    check_token_batch(batch, np.ndarray, model.config.vocab_size)
    model.train()
    loss = model.loss(batch[:, :-1], batch[:, 1:])
    loss.backward()
    clip_gradients(model.parameters(), max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


@no_grad()
def evaluate_loss(
    model: Transformer, batches: Any, max_batches: int | None = None, documents: bool = True
) -> Metrics:
    """`eval_loss`, in nats per token, over the first batches of held-out data: no randomness, the same every time."""
    nats, items = 0.0, 0
    model.eval()
    for batch in batches.one_pass(max_batches):
        nats += model.loss(**model_inputs(batch, documents)).item() * batch.num_items
        items += batch.num_items
    return {"eval_loss": nats / items}


def model_inputs(batch: Batch, documents: bool = True) -> dict[str, Any]:
    """The arguments of `Transformer.loss`; without `documents` a row is one text, and the model counts positions."""
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "labels": batch.labels}
    if documents:
        inputs |= {"position_ids": batch.position_ids, "packing": Packing(batch.document_ids)}
    return inputs


def _seed_dropout(model: Module, seed: int, step: int) -> None:
    """Dropout draws from a generator seeded anew by (seed, step), so a resumed run has no state of it to restore."""
    for module in model.modules():
        if isinstance(module, CausalModel):
            module.dropout_generator = np.random.default_rng([seed, step])

"""The training step of all levels: packed documents, gradient accumulation, evaluation, a diverged run."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shared_data.errors import UserError
from shared_data.settings import ModelSettings, PretrainSettings
from tests.parity.recorder import ParityRecorder, as_array
from tests.parity.test_data_loader import END, documents, write_tokens

LEVELS = ("v1_quick", "v2_handwritten", "v3_numpy_deep")
VOCABULARY = 97


class Level:
    """A small model of one level, and what trains it."""

    def __init__(
        self, level: str, family: str = "llama", dtype: str = "float32", dropout: float = 0.0, **sizes: Any
    ) -> None:
        self.level = level
        self.module: Callable[[str], Any] = lambda name: importlib.import_module(f"{level}.{name}")
        values = {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
        }
        values |= {"num_key_value_heads": 2} if family == "llama" else {}
        settings = ModelSettings(model_type=family, dropout=dropout, **(values | sizes))  # type: ignore[arg-type]
        config = self.module("models.config").ModelConfig.from_settings(settings, VOCABULARY, END)
        self.model = self.module("models.transformer").Transformer(config).initialize(0)
        if dtype == "float64":
            self.model.to(np.float64 if level == "v3_numpy_deep" else torch.float64)
        self.inner = getattr(self.model, "library", self.model)

    def loss(self, **arrays: np.ndarray) -> Any:
        inputs = (
            arrays if self.level == "v3_numpy_deep" else {k: torch.from_numpy(v) for k, v in arrays.items()}
        )
        return self.model.loss(**inputs)

    def gradients(self) -> dict[str, np.ndarray]:
        return {name: as_array(parameter.grad) for name, parameter in self.inner.named_parameters()}

    def weights(self) -> dict[str, np.ndarray]:
        return {name: as_array(parameter).copy() for name, parameter in self.inner.named_parameters()}

    def train(self, path: Path, **settings: Any) -> list[Any]:
        """Run the loop of the level; the steps it reports."""
        values = {
            "steps": 3,
            "batch_size": 4,
            "sequence_length": 32,
            "warmup_steps": 0,
            "learning_rate": 1e-2,
        }
        section = PretrainSettings(**(values | settings))
        loop = self.module("pretrain.components.training_loop")
        optimizer = self.module("pretrain.components.muon").choose_optimizer(self.inner, section)
        loader = self.module("pretrain.data_loader").PackedDataLoader(
            path, section.batch_size, section.sequence_length, END, section.seed
        )
        state = self.module("pretrain.components.training_state").TrainingState()
        steps: list[Any] = []
        loop.train(self.model, optimizer, loader, section, state, steps.append)
        assert state.step == section.steps == len(steps)
        assert state.tokens == sum(step.tokens for step in steps)
        return steps


def flat(arrays: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([arrays[name].ravel() for name in sorted(arrays)])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(
    ("level", "dtype", "tolerance"),
    [
        ("v1_quick", "float32", 5e-7),
        ("v2_handwritten", "float64", 2e-15),
        ("v3_numpy_deep", "float64", 2e-15),
    ],
)
def test_a_packed_batch_is_its_documents_run_one_by_one(
    level: str, dtype: str, tolerance: float, family: str, tmp_path: Path, parity: ParityRecorder
) -> None:
    rng = np.random.default_rng(0)
    texts = [rng.integers(1, VOCABULARY, n).tolist() for n in (9, 0, 1, 17, 5, 30, 12)]
    path = write_tokens(tmp_path, np.array([token for text in texts for token in [*text, END]]))
    made = Level(level, family, dtype)
    loader = made.module("pretrain.data_loader").PackedDataLoader(path, 2, 41, END, 0)
    (batch,) = loader.one_pass()
    assert batch.num_targets == sum(len(text) + 1 for text in texts)
    names = ["input_ids", "labels", "position_ids"] + (["document_ids"] if level != "v1_quick" else [])
    packed = made.loss(**{name: getattr(batch, name) for name in names})
    packed.backward()
    packed_gradients = flat(made.gradients())

    for parameter in made.inner.parameters():
        parameter.grad = None
    total = 0.0
    for row in range(2):
        for document in np.unique(batch.document_ids[row][batch.labels[row] != -100]):
            here = batch.document_ids[row] == document
            alone = made.loss(
                input_ids=batch.input_ids[row][here][None], labels=batch.labels[row][here][None]
            )
            alone = alone * (np.count_nonzero(here) / batch.num_targets)
            alone.backward()
            total += alone.item()
    row = {"component": f"packing, {family}", "levels": level[:2], "tolerance": tolerance}
    parity(quantity="loss", actual=packed.item(), expected=total, **row)
    parity(quantity="all gradients", actual=packed_gradients, expected=flat(made.gradients()), **row)

    blind = made.loss(input_ids=batch.input_ids, labels=batch.labels).item()
    assert abs(blind - total) > 1e-4, "without masks the loss is another: the test can tell"


@pytest.mark.parametrize("level", LEVELS)
def test_accumulated_pieces_are_one_large_batch_though_one_piece_has_fewer_targets(
    level: str, tmp_path: Path, parity: ParityRecorder
) -> None:
    """The exercise of training_loop.md: the mean of the pieces' means is another loss, and another gradient."""
    path = write_tokens(
        tmp_path, documents(0, 12)[: 3 * 32 + 5]
    )  # four sequences, one of them with 5 targets
    whole, pieces = Level(level), Level(level)
    (one,) = whole.train(path, steps=1, batch_size=4, max_grad_norm=0.0)
    (several,) = pieces.train(path, steps=1, batch_size=1, gradient_accumulation_steps=4, max_grad_norm=0.0)
    assert one.tokens == several.tokens == 3 * 32 + 5
    row = {"component": "gradient accumulation", "levels": level[:2]}
    parity(quantity="loss", actual=several.loss, expected=one.loss, tolerance=5e-7, **row)
    parity(
        quantity="gradient norm",
        actual=several.gradient_norm,
        expected=one.gradient_norm,
        tolerance=5e-7,
        **row,
    )
    fresh = Level(level)
    loader = fresh.module("pretrain.data_loader").PackedDataLoader(path, 1, 32, END, 0)
    arguments = [
        {name: getattr(b, name) for name in ("input_ids", "labels", "position_ids")}
        for b in loader.one_pass()
    ]
    if level != "v1_quick":
        arguments = [
            a | {"document_ids": b.document_ids} for a, b in zip(arguments, loader.one_pass(), strict=True)
        ]
    mean_of_means = np.mean([fresh.loss(**each).item() for each in arguments])
    assert abs(mean_of_means - one.loss) > 1e-3


@pytest.mark.parametrize("level", LEVELS)
def test_two_runs_from_one_seed_are_bit_identical_and_another_seed_is_not(level: str, tmp_path: Path) -> None:
    path = write_tokens(tmp_path, documents(1, 60))
    runs = []
    for seed in (0, 0, 1):
        made = Level(level, dropout=0.1)
        losses = [step.loss for step in made.train(path, seed=seed)]
        runs.append((losses, flat(made.weights())))
    assert runs[0][0] == runs[1][0] != runs[2][0]
    np.testing.assert_array_equal(runs[0][1], runs[1][1])


@pytest.mark.parametrize("level", LEVELS)
def test_a_run_that_is_no_longer_a_number_stops_and_says_what_to_lower(level: str, tmp_path: Path) -> None:
    path = write_tokens(tmp_path, documents(1, 60))
    made = Level(level)
    poisoned = dict(made.inner.named_parameters())["model.norm.weight"]
    as_array(poisoned)[0] = np.nan
    before = flat(made.weights())
    with pytest.raises(UserError, match=r"diverged: .* at step 1; lower pretrain.learning_rate \(now 0.01\)"):
        made.train(path)
    if level != "v1_quick":  # the Trainer reports a step only after its update
        np.testing.assert_array_equal(flat(made.weights()), before)


@pytest.mark.parametrize("level", LEVELS)
def test_a_run_far_above_blind_guessing_stops(level: str, tmp_path: Path) -> None:
    made = Level(level)
    for parameter in made.inner.parameters():
        as_array(parameter)[...] *= 30
    with pytest.raises(UserError, match="the loss is"):
        made.train(write_tokens(tmp_path, documents(1, 60)))


@pytest.mark.parametrize("level", LEVELS)
def test_evaluation_is_the_mean_over_tokens_and_repeats_exactly(level: str, tmp_path: Path) -> None:
    path = write_tokens(tmp_path, documents(2, 60)[: 5 * 32 + 7])
    made = Level(level, dropout=0.2)
    evaluate = made.module("pretrain.components.training_loop").evaluate_loss
    loaders = [
        made.module("pretrain.data_loader").PackedDataLoader(path, size, 32, END, 0) for size in (4, 1)
    ]
    value = evaluate(made.model, loaders[0], None, True)
    assert value == evaluate(made.model, loaders[0], None, True), "dropout must be off"
    assert value == pytest.approx(evaluate(made.model, loaders[1], None, True), rel=1e-6)
    assert evaluate(made.model, loaders[1], 2, True) != value
    assert made.model.training

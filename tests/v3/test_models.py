"""What level 3's models promise alone: no torch, cores and memory used as said, caches, dropout, errors with a remedy."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from shared_data.errors import UserError
from shared_data.memory import keep_freed_memory
from shared_data.model_files.config import ModelConfig
from tests.parity.arrays import array, integers
from v3_numpy_deep.autograd import Tensor, is_recording, no_grad
from v3_numpy_deep.autograd.kernels import KERNELS, kernel
from v3_numpy_deep.autograd.parallel import in_threads, shards
from v3_numpy_deep.inference.kv_cache import KVCache
from v3_numpy_deep.models.blocks.dropout import dropout
from v3_numpy_deep.models.blocks.linear import Linear, merged_linear
from v3_numpy_deep.models.checkpoint import load_model, load_weights, save_model
from v3_numpy_deep.models.log_probs import completion_log_probs
from v3_numpy_deep.models.packing import Packing
from v3_numpy_deep.models.reward_model import RewardModel
from v3_numpy_deep.models.sharding import cut_documents
from v3_numpy_deep.models.transformer import Transformer

SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "initializer_range": 0.2,
}
IDS = integers(1, 96, 2, 20)


def small(family: str = "llama", **values: object) -> Transformer:
    return Transformer(ModelConfig(model_type=family, **SMALL | values)).initialize(0)


def test_a_step_needs_no_torch_and_no_hugging_face_library() -> None:
    program = """
        import sys
        for name in ("torch", "transformers", "tokenizers", "datasets"):
            sys.modules[name] = None  # importing it now fails
        import numpy as np
        from v3_numpy_deep.models import checkpoint
        from shared_data.model_files.config import ModelConfig
        from v3_numpy_deep.models.transformer import Transformer
        model = Transformer(ModelConfig(vocab_size=256, hidden_size=16)).initialize(0)
        model.loss(np.ones((2, 8), int), np.ones((2, 8), int)).backward()
        print(all(parameter.grad is not None for parameter in model.parameters()))
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "True"


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_training_lowers_the_loss_in_float32_throughout(family: str) -> None:
    model, losses = small(family, initializer_range=0.02), []
    for _ in range(12):
        model.zero_grad()
        loss = model.loss(IDS, np.roll(IDS, -1, axis=1))
        loss.backward()
        losses.append(loss.item())
        assert loss.dtype == np.float32
        for parameter in model.parameters():
            assert parameter.grad.dtype == np.float32
            parameter.data -= 0.3 * parameter.grad
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_cache_gives_the_logits_of_the_whole_sequence(family: str) -> None:
    model = small(family)
    with no_grad():
        expected = model(IDS).data
        cache = KVCache(model.config, batch_size=2, max_length=20)
        parts = [model(IDS[:, start:end], cache=cache).data for start, end in ((0, 7), (7, 8), (8, 20))]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), expected, atol=2e-5)


def test_padding_on_the_left_changes_nothing_for_the_tokens() -> None:
    model = small()
    attention_mask = np.ones_like(IDS)
    attention_mask[0, :6] = 0
    with no_grad():
        alone = model(IDS[:1, 6:]).data
        positions = (attention_mask.cumsum(axis=1) - 1).clip(min=0)
        padded = model(IDS, positions, attention_mask=attention_mask).data
    assert np.isfinite(padded).all()
    np.testing.assert_allclose(padded[:1, 6:], alone, atol=2e-5)


def test_dropout_keeps_the_mean_acts_in_training_only_and_repeats_with_its_seed() -> None:
    x = Tensor(np.ones((200, 200), np.float32), requires_grad=True)
    y = dropout(x, 0.25, True, np.random.default_rng(0))
    assert set(np.unique(y.data)) == {np.float32(0), np.float32(1 / 0.75)}
    assert y.data.mean() == pytest.approx(1, abs=0.02)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, y.data)  # the mask of the forward pass
    assert dropout(x, 0.25, False) is x
    model = small(embd_pdrop=0.1, attention_dropout=0.1, resid_pdrop=0.1, family="gpt2")

    def losses() -> list[float]:
        model.dropout_generator = np.random.default_rng(7)
        return [model.loss(IDS, IDS).item() for _ in range(2)]

    first = losses()
    assert first == losses()
    assert first[0] != first[1]
    model.eval()
    assert model.loss(IDS, IDS).item() == model.loss(IDS, IDS).item()


def test_an_adapter_among_the_layers_is_called_instead_of_stacked() -> None:
    class Adapter(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2.0

    layers = [Linear(4, 3), Adapter(4, 2)]
    for seed, layer in enumerate(layers):
        layer.to(np.float64).load_state_dict(
            {"weight": array(seed, *layer.weight.shape), "bias": array(9, *layer.bias.shape)}
        )
    x = Tensor(array(5, 2, 4))
    np.testing.assert_allclose(
        kernel("fused", merged_linear)(x, layers).data,
        np.concatenate([layers[0](x).data, layers[1](x).data], axis=1),
    )


@pytest.mark.parametrize(("size", "threads"), [(16, 2), (5, 3), (1, 4), (3, 8), (7, 1)])
def test_shards_cover_all_rows_once_and_evenly(size: int, threads: int) -> None:
    parts = shards(size, threads)
    assert np.concatenate([np.arange(size)[part] for part in parts]).tolist() == list(range(size))
    lengths = [part.stop - part.start for part in parts]
    assert min(lengths) > 0
    assert max(lengths) - min(lengths) <= 1
    assert len(parts) == min(size, threads)


@pytest.mark.parametrize("lengths", [[3, 9, 1, 7, 12], [32], [1, 31], [16, 16]])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_a_packed_sequence_is_cut_at_the_ends_of_documents_only(lengths: list[int], parts: int) -> None:
    document_ids = np.repeat(np.arange(len(lengths)), lengths)
    pieces = cut_documents(document_ids, parts)
    assert np.concatenate([np.arange(32)[piece] for piece in pieces]).tolist() == list(range(32))
    assert {piece.stop for piece in pieces} <= set(np.cumsum(lengths).tolist())
    assert len(pieces) <= parts
    if lengths == [16, 16] and parts == 2:
        assert pieces == [slice(0, 16), slice(16, 32)]


@pytest.mark.parametrize("reset", [True, False], ids=["positions restart", "positions go on"])
def test_a_packed_sequence_in_threads_gives_the_loss_and_gradients_of_one_thread(
    monkeypatch: pytest.MonkeyPatch, reset: bool
) -> None:
    model = Transformer(ModelConfig(vocab_size=96, num_hidden_layers=2)).initialize(0).to(np.float64)
    lengths = [5, 20, 11, 4, 24]
    ids, labels = (np.random.default_rng(seed).integers(0, 96, (1, 64)) for seed in (1, 2))
    labels[0, :25] = -100  # the parts weigh differently, and the first of three has no label
    documents = np.repeat(np.arange(5), lengths)[None]
    positions = np.concatenate([np.arange(n) for n in lengths])[None] if reset else None
    results = []
    for threads in (1, 2, 3):
        monkeypatch.setattr("v3_numpy_deep.models.sharding.available_threads", lambda n=threads: n)
        model.zero_grad()
        loss = model.loss(ids, labels, positions, Packing(documents))
        loss.backward()
        results.append([loss.data, *(parameter.grad for parameter in model.parameters())])
    for result in results[1:]:
        for ours, expected in zip(result, results[0], strict=True):
            np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_rows_in_threads_give_the_values_and_gradients_of_one_thread(
    monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    model = small(family, max_position_embeddings=32).to(np.float64)
    grader = RewardModel.from_transformer(model, 0)
    ids = integers(6, 96, 8, 20)
    ids[1::2, :12] = ids[::2, :12]  # pairs that share a prefix
    real = np.arange(20) < np.array([20, 17, 20, 14] * 2)[:, None]
    results = []
    for threads in (1, 2, 3, 3):
        monkeypatch.setattr("v3_numpy_deep.models.sharding.available_threads", lambda n=threads: n)
        model.zero_grad()
        log_probs = completion_log_probs(model, ids, (np.arange(20) > 11) & real, real, temperature=0.7)
        (log_probs**2).sum().backward()
        scores, last = grader.scores(ids, real), grader(ids, attention_mask=real)
        results.append([log_probs.data, *(p.grad for p in model.parameters()), scores.data * real, last.data])
    for result in results[1:]:
        for ours, expected in zip(result, results[0], strict=True):
            np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-12)
    for first, again in zip(*results[2:], strict=True):
        np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_plain_kernels_compute_the_same_in_one_thread(
    monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    models = [Transformer(small(family).config, choice).initialize(0).to(np.float64) for choice in KERNELS]
    labels, documents = np.where(IDS < 9, -100, IDS), np.sort(integers(4, 3, 2, 20))
    losses = [model.loss(IDS, labels, None, Packing(documents)) for model in models]
    for loss in losses:
        loss.backward()
    np.testing.assert_allclose(*(loss.data for loss in losses), rtol=1e-14)
    for plain, fused in zip(*(model.parameters() for model in models), strict=True):
        np.testing.assert_allclose(fused.grad, plain.grad, rtol=0, atol=1e-13)
    monkeypatch.setattr("v3_numpy_deep.models.sharding.in_threads", None)
    models[0].loss(IDS, labels)
    with pytest.raises(UserError, match="choose one of plain, fused"):
        models[0].kernels = "library"


def test_load_weights_fills_a_model_in_place_in_its_own_type(tmp_path: Path) -> None:
    source = small()
    for number, model in enumerate([source, RewardModel.from_transformer(source, 0)]):
        save_model(model, tmp_path / str(number))
        target = type(model)(model.config).to(np.float64)
        arrays = [parameter.data for parameter in target.parameters()]
        load_weights(target, tmp_path / str(number))
        for parameter, values, expected in zip(target.parameters(), arrays, model.parameters(), strict=True):
            assert parameter.data is values
            np.testing.assert_array_equal(values, expected.data.astype(np.float64))


def test_an_error_in_a_thread_reaches_the_caller() -> None:
    def fail(part: slice) -> Tensor:
        raise UserError(f"no rows {part}")

    with pytest.raises(UserError, match="no rows"):
        in_threads(fail, shards(4, 2), [])


def test_shards_obey_no_grad() -> None:
    weight, modes = Tensor([2.0], requires_grad=True), []

    def function(part: slice) -> Tensor:
        modes.append(is_recording())
        return weight * float(part.start)

    with no_grad():
        rows = in_threads(function, shards(4, 2), [weight])
    assert modes == [False, False]
    assert not rows.requires_grad
    assert rows.data.tolist() == [0.0, 4.0]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_training_stops_asking_the_system_for_memory() -> None:
    program = """
        import resource
        import numpy as np
        from shared_data.model_files.config import ModelConfig
        from shared_data.settings import PretrainSettings
        from v3_numpy_deep import make_optimizer, new_model
        model = new_model(ModelConfig(vocab_size=512, num_hidden_layers=2))
        make_optimizer(model, PretrainSettings())
        ids = np.arange(2048).reshape(8, 256) % 512
        def step():
            model.zero_grad()
            model.loss(ids, ids).backward()
        for _ in range(4):
            step()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(4):
            step()
        print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 4)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True
    )
    if keep_freed_memory():  # glibc, not musl
        assert float(result.stdout) < 1000  # without it 8,600 pages of 4 KiB a step


def test_a_sequence_longer_than_the_positions_is_an_error_with_a_remedy() -> None:
    with pytest.raises(UserError, match="max_position_embeddings"):
        small(max_position_embeddings=16)(IDS)


def _shape(folder: Path) -> None:
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"hidden_size": 32', '"hidden_size": 64'))


def _cut(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])


def _missing(folder: Path) -> None:
    save_file({"model.norm.weight": np.ones(32, np.float32)}, folder / "model.safetensors")


def _integers(folder: Path) -> None:
    save_file({"model.norm.weight": np.ones(32, np.int32)}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_shape, "config.json that belongs"),
        (_cut, "copy it again"),
        (_missing, "lacks tensor"),
        (_integers, "type I32"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'), "'bert'"),
    ],
)
def test_a_damaged_checkpoint_is_one_clear_error(damage, message: str, tmp_path: Path) -> None:
    save_model(small(), tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        load_model(tmp_path)

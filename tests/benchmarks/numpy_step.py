"""One training step, forward and backward, in pure NumPy: level 3 against HIPS autograd, tinygrad and Hugging Face's model.

The same tiny Llama with the same weights on the same packed batch, in float32, taking turns in one process; loss and gradients
are compared before anything is timed. The two peers get the model as their users would write it: autograd as a function of
NumPy arrays, tinygrad as a jitted step. tinygrad compiles its CPU kernels with `clang`, and is left out where there is none.

    python -m tests.benchmarks.numpy_step
"""

import argparse
import math
import shutil
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from shared_data.model_files.config import ModelConfig
from shared_data.model_files.initialization import initial_weights
from tests.benchmarks.training_step import TINY, packed_batch

Arrays = dict[str, np.ndarray]
Step = Callable[[], tuple[float, np.ndarray]]  # one step: the loss, and the gradient of the token embedding
CONFIG = ModelConfig.from_hf(TINY["llama"].to_hf())
PATIENCE = 10.0  # seconds; a contender that has taken more is not asked again
EMBEDDING = "model.embed_tokens.weight"


def constants(batch: Arrays) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The additive mask [B, 1, T, T] of documents, and cos and sin of the positions [B, 1, T, D]."""
    documents = batch["document_ids"]
    allowed = np.tril(documents[:, :, None] == documents[:, None, :])
    mask = np.where(allowed, 0.0, -1e30).astype(np.float32)[:, None]
    frequencies = CONFIG.rope_theta ** (-np.arange(0, CONFIG.head_dim, 2) / CONFIG.head_dim)
    angles = batch["position_ids"][:, None, :, None] * np.tile(frequencies, 2)
    return mask, np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def hips_autograd(weights: Arrays, batch: Arrays) -> Step:
    """The model as a function of arrays, differentiated by HIPS autograd."""
    import autograd.numpy as anp
    from autograd import value_and_grad

    mask, cos, sin = constants(batch)
    B, T = batch["input_ids"].shape
    H, K, D = CONFIG.num_attention_heads, CONFIG.num_key_value_heads, CONFIG.head_dim

    def norm(x: Any, weight: Any) -> Any:
        return x / anp.sqrt(anp.mean(x * x, axis=-1, keepdims=True) + CONFIG.rms_norm_eps) * weight

    def heads(x: Any, number: int) -> Any:
        return anp.transpose(anp.reshape(x, (B, T, number, D)), (0, 2, 1, 3))

    def rotate(x: Any) -> Any:
        return x * cos + anp.concatenate([-x[..., D // 2 :], x[..., : D // 2]], axis=-1) * sin

    def attention(x: Any, p: dict[str, Any], block: str) -> Any:
        q = rotate(heads(x @ p[f"{block}.q_proj.weight"].T, H))
        k = anp.repeat(rotate(heads(x @ p[f"{block}.k_proj.weight"].T, K)), H // K, axis=1)
        v = anp.repeat(heads(x @ p[f"{block}.v_proj.weight"].T, K), H // K, axis=1)
        scores = q @ anp.transpose(k, (0, 1, 3, 2)) / math.sqrt(D) + mask
        e = anp.exp(scores - anp.max(scores, axis=-1, keepdims=True))
        y = (e / anp.sum(e, axis=-1, keepdims=True)) @ v
        return anp.reshape(anp.transpose(y, (0, 2, 1, 3)), (B, T, H * D)) @ p[f"{block}.o_proj.weight"].T

    def feed_forward(x: Any, p: dict[str, Any], block: str) -> Any:
        gate, up = x @ p[f"{block}.gate_proj.weight"].T, x @ p[f"{block}.up_proj.weight"].T
        return (gate / (1 + anp.exp(-gate)) * up) @ p[f"{block}.down_proj.weight"].T

    def loss(p: dict[str, Any]) -> Any:
        x = p[EMBEDDING][batch["input_ids"]]
        for layer in range(CONFIG.num_hidden_layers):
            block = f"model.layers.{layer}"
            x = x + attention(norm(x, p[f"{block}.input_layernorm.weight"]), p, f"{block}.self_attn")
            x = x + feed_forward(norm(x, p[f"{block}.post_attention_layernorm.weight"]), p, f"{block}.mlp")
        logits = anp.reshape(norm(x, p["model.norm.weight"]) @ p[EMBEDDING].T, (B * T, -1))
        shifted = logits - anp.max(logits, axis=-1, keepdims=True)
        targets = shifted[np.arange(B * T), batch["labels"].reshape(-1)]
        return anp.mean(anp.log(anp.sum(anp.exp(shifted), axis=-1)) - targets)

    gradient = value_and_grad(loss)

    def step() -> tuple[float, np.ndarray]:
        value, gradients = gradient(weights)
        return float(value), gradients[EMBEDDING]

    return step


def tinygrad(weights: Arrays, batch: Arrays) -> Step:
    """The model in tinygrad's operations, its step jitted."""
    from tinygrad import Tensor, TinyJit

    mask, cos, sin = (Tensor(x) for x in constants(batch))
    ids, labels = (Tensor(batch[name].astype(np.int32)) for name in ("input_ids", "labels"))
    p = {name: Tensor(weight) for name, weight in weights.items()}
    B, T = ids.shape
    H, K, D = CONFIG.num_attention_heads, CONFIG.num_key_value_heads, CONFIG.head_dim

    def norm(x: Any, weight: Any) -> Any:
        return x * ((x * x).mean(-1, keepdim=True) + CONFIG.rms_norm_eps).rsqrt() * weight

    def heads(x: Any, number: int) -> Any:
        return x.reshape(B, T, number, D).transpose(1, 2)

    def rotate(x: Any) -> Any:
        return x * cos + (-x[..., D // 2 :]).cat(x[..., : D // 2], dim=-1) * sin

    def attention(x: Any, block: str) -> Any:
        q = rotate(heads(x.linear(p[f"{block}.q_proj.weight"].T), H))
        k = rotate(heads(x.linear(p[f"{block}.k_proj.weight"].T), K)).repeat_interleave(H // K, dim=1)
        v = heads(x.linear(p[f"{block}.v_proj.weight"].T), K).repeat_interleave(H // K, dim=1)
        y = Tensor.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return y.transpose(1, 2).reshape(B, T, H * D).linear(p[f"{block}.o_proj.weight"].T)

    def feed_forward(x: Any, block: str) -> Any:
        gate, up = x.linear(p[f"{block}.gate_proj.weight"].T), x.linear(p[f"{block}.up_proj.weight"].T)
        return (gate.silu() * up).linear(p[f"{block}.down_proj.weight"].T)

    @TinyJit
    def jitted() -> Any:
        x = p[EMBEDDING][ids]
        for layer in range(CONFIG.num_hidden_layers):
            block = f"model.layers.{layer}"
            x = x + attention(norm(x, p[f"{block}.input_layernorm.weight"]), f"{block}.self_attn")
            x = x + feed_forward(norm(x, p[f"{block}.post_attention_layernorm.weight"]), f"{block}.mlp")
        logits = norm(x, p["model.norm.weight"]).linear(p[EMBEDDING].T)
        loss = logits.reshape(B * T, -1).sparse_categorical_crossentropy(labels.reshape(-1))
        results = [loss, *loss.gradient(*p.values())]
        Tensor.realize(*results)
        return results

    def step() -> tuple[float, np.ndarray]:
        loss, *gradients = jitted()
        return loss.item(), gradients[list(p).index(EMBEDDING)].numpy()

    return step


def level_3(weights: Arrays, batch: Arrays) -> Step:
    """This project's engine."""
    from v3_numpy_deep.models.packing import Packing
    from v3_numpy_deep.models.transformer import Transformer

    model = Transformer(CONFIG)
    model.load_state_dict(weights, strict=False)
    packing = Packing.from_documents(batch["document_ids"])
    inputs = [batch[name] for name in ("input_ids", "labels", "position_ids")]

    def step() -> tuple[float, np.ndarray]:
        model.zero_grad()
        loss = model.loss(*inputs, packing)
        loss.backward()
        return loss.item(), model.token_embedding.weight.grad

    return step


def hugging_face(weights: Arrays, batch: Arrays) -> Step:
    """transformers' LlamaForCausalLM, packed through position_ids as level 1 does it."""
    import torch

    from tests.parity.model_cases import LibraryModel

    model = LibraryModel(CONFIG)
    ids, labels, positions = (
        torch.from_numpy(batch[name]) for name in ("input_ids", "labels", "position_ids")
    )

    def step() -> tuple[float, np.ndarray]:
        model.zero_grad(set_to_none=True)
        loss = model.loss(ids, labels, positions)
        loss.backward()
        return loss.item(), model.library.get_input_embeddings().weight.grad.numpy()

    return step


def run(
    rounds: int = 5, contenders: tuple[str, ...] = ("hugging_face", "hips_autograd", "tinygrad")
) -> list[dict]:
    """Rows for the table of `python -m tests.benchmarks`: level 3's speed as a multiple of each other's."""
    if shutil.which("clang") is None:
        contenders = tuple(name for name in contenders if name != "tinygrad")
    weights = dict(initial_weights(CONFIG, 0))
    batch = {name: tensor.numpy() for name, tensor in packed_batch().items()}
    steps = {name: globals()[name](weights, batch) for name in ("level_3", *contenders)}
    expected_loss, expected_gradient = steps["level_3"]()
    for name, step in steps.items():
        for _ in range(2):  # tinygrad's jit records the second call
            loss, gradient = step()
        assert abs(loss - expected_loss) < 1e-4, f"{name}: loss {loss}, level 3 has {expected_loss}"
        assert np.abs(gradient - expected_gradient).max() < 1e-5, f"{name} has other gradients"
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            if sum(seconds[name]) > PATIENCE:
                continue
            step()  # threads of the one before have gone to sleep after this
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(taken) for name, taken in seconds.items()}
    tokens = batch["input_ids"].size
    return [
        {
            "what": f"training step, tokens/s, v3 ÷ {name}",
            "v3 tokens/s": tokens / median["level_3"],
            f"{name} tokens/s": tokens / median[name],
            "ratio": median[name] / median["level_3"],
            "target": 0.8 if name == "hugging_face" else 1.0,
        }
        for name in contenders
    ]


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    for row in run(parser.parse_args().rounds):
        print(
            "  ".join(
                f"{key} {value:,.2f}" if isinstance(value, float) else value for key, value in row.items()
            )
        )


if __name__ == "__main__":
    main()

"""Every family as a checkpoint of transformers: levels 2 and 3 load it, compute the same, and save what the library reads."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import v3_numpy_deep.models.checkpoint as v3
from shared_data.model_files.folder import read_config
from shared_data.model_files.initialization import is_buffer, parameter_shapes
from tests.parity.family_cases import (
    CASES,
    batch,
    config_of,
    each_case,
    library_model,
    library_results,
    saved,
)
from tests.parity.recorder import ParityRecorder
from v2_handwritten.inference.generate import generate as generate2
from v2_handwritten.models.checkpoint import load_model, save_model
from v3_numpy_deep.autograd import no_grad
from v3_numpy_deep.inference.generate import generate as generate3

# The library computes norms, softmax and rotary tables in float32, also where the model is in float64.
LIBRARY = {"logits": 1e-5, "loss": 2e-7, "every gradient": 2e-5}
LEVELS = {"logits": 3e-14, "loss": 4e-15, "every gradient": 1e-13}


def relative(gradients: dict[str, np.ndarray], expected: dict[str, Any]) -> np.ndarray:
    """All gradients in a row, each divided by the largest element of the expected one: none is too small to count.

    But what should be 0: a bias of all keys changes no softmax where nothing is rotated.
    """
    assert gradients.keys() == expected.keys()
    sizes = {name: max(float(np.abs(gradient).max()), 1e-3) for name, gradient in expected.items()}
    return np.concatenate([(gradients[name] / sizes[name]).ravel() for name in expected])


@each_case
def test_loaded_checkpoints_give_logits_loss_and_every_gradient(
    parity: ParityRecorder, tmp_path: Path, case: str
) -> None:
    library = saved(case, tmp_path)
    ids, labels = batch()
    theirs = library_results(library.double())
    level2, level3 = load_model(tmp_path).double(), v3.load_model(tmp_path).to(np.float64)
    assert level2.config == level3.config == config_of(case)
    loss2, loss3 = level2.loss(ids, labels), level3.loss(ids.numpy(), labels.numpy())
    loss2.backward()
    loss3.backward()
    with torch.no_grad(), no_grad():
        logits2, logits3 = level2(ids).numpy(), level3(ids.numpy()).data
    found = {
        "v1": {name: value.numpy() for name, value in theirs.items() if name not in ("logits", "loss")},
        "v2": {n: p.grad.numpy() for n, p in level2.named_parameters() if p.grad is not None},
        "v3": {n: p.grad for n, p in level3.named_parameters() if p.grad is not None},
    }
    # The library's indexers run without gradients.
    trained = [n for n in parameter_shapes(level2.config) if not is_buffer(n) and ".indexer." not in n]
    assert sorted(found["v1"]) == sorted(trained)  # none has been forgotten
    for levels, ours, expected, tolerance in (
        ("v2-v1", (logits2, loss2, "v2"), (theirs["logits"], theirs["loss"], "v1"), LIBRARY),
        ("v3-v2", (logits3, loss3, "v3"), (logits2, loss2, "v2"), LEVELS),
    ):
        want = found[str(expected[2])]
        for quantity, actual, wanted in (
            ("logits", ours[0], expected[0]),
            ("loss", ours[1], expected[1]),
            ("every gradient", relative(found[str(ours[2])], want), relative(want, want)),
        ):
            parity(
                component=f"family, {case}",
                quantity=quantity,
                levels=levels,
                actual=actual,
                expected=wanted,
                tolerance=tolerance[quantity],
            )


@each_case
def test_what_either_level_saves_the_library_loads_and_misses_nothing(
    parity: ParityRecorder, tmp_path: Path, case: str
) -> None:
    library = saved(case, tmp_path / "v1")
    save_model(load_model(tmp_path / "v1"), tmp_path / "v2")
    v3.save_model(v3.load_model(tmp_path / "v1"), tmp_path / "v3")
    v1, v2, v3_tensors = (load_file(tmp_path / level / "model.safetensors") for level in ("v1", "v2", "v3"))
    assert v1.keys() == v2.keys() == v3_tensors.keys()
    assert all(torch.equal(v1[name], v2[name]) for name in v1)
    assert all(torch.equal(v1[name], v3_tensors[name]) for name in v1)
    again, report = AutoModelForCausalLM.from_pretrained(tmp_path / "v2", output_loading_info=True)
    assert not any(report.values()), report
    ids, _ = batch()
    with torch.no_grad():
        parity(
            component=f"family, {case}",
            quantity="logits of from_pretrained(our folder)",
            levels="v2-v1",
            actual=again.eval()(ids).logits,
            expected=library.eval()(ids).logits,
            tolerance=4e-6,  # experts one by one there, grouped here
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@each_case
def test_shards_in_half_precision_are_read_bit_by_bit(tmp_path: Path, case: str, dtype: torch.dtype) -> None:
    library = saved(case, tmp_path, dtype, shard="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    expected = dict(library.named_parameters()) | dict(library.named_buffers())
    level2, level3 = load_model(tmp_path).state_dict(), v3.load_model(tmp_path).state_dict()
    for name in parameter_shapes(config_of(case)):
        stored = expected[name].detach()
        assert torch.equal(level2[name], stored), name
        np.testing.assert_array_equal(level3[name], stored.float().numpy(), err_msg=name)


@pytest.mark.parametrize("case", ["qwen2", "gemma2", "smollm3"])
def test_an_output_matrix_that_differs_is_used_although_the_config_says_tied(
    parity: ParityRecorder, tmp_path: Path, case: str
) -> None:
    saved(case, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].flip(0).contiguous()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert not read_config(tmp_path).tie_word_embeddings
    library, ids = AutoModelForCausalLM.from_pretrained(tmp_path).eval(), batch()[0]
    with torch.no_grad(), no_grad():
        expected = library(ids).logits
        for level, logits in (
            ("v2-v1", load_model(tmp_path)(ids)),
            ("v3-v1", v3.load_model(tmp_path)(ids.numpy())),
        ):
            parity(
                component=f"family, {case}",
                quantity="logits where tied matrices differ",
                levels=level,
                actual=logits,
                expected=expected,
                tolerance=2e-5,
            )


def test_dynamic_rope_is_the_librarys_at_every_length_in_any_order() -> None:
    """Each pass of ours depends on its own length alone; transformers' remembers the longest, and forgets it below the trained length."""
    case = "llama, dynamic rope"  # trained on 16 tokens, good for 64
    library, ids = library_model(case).double().eval(), torch.cat([batch()[0][:1], batch()[0][1:]], 1)
    fresh = load_like(library, case)
    with torch.no_grad():
        for length in (8, 16, 17, 33, 64, 12, 40):
            expected = library(ids[:, :length], use_cache=False).logits
            torch.testing.assert_close(fresh(ids[:, :length]), expected, rtol=0, atol=3e-5)
        # Where it has not forgotten: its answer for 20 tokens is still that for 40 frequencies; ours is that for 20.
        stale = library(ids[:, :20], use_cache=False).logits
        assert (fresh(ids[:, :20]) - stale).abs().max() > 1e-2


def load_like(library: torch.nn.Module, case: str) -> Any:
    """Level 2's model with the library's weights."""
    from v2_handwritten.models.transformer import Transformer

    ours = Transformer(config_of(case)).double()
    ours.load_state_dict(library.state_dict())
    return ours.eval()


def test_every_family_of_the_table_has_a_case() -> None:
    from tests.parity.family_cases import LIBRARY_FAMILIES

    assert {case.split(",")[0] for case in CASES} == set(LIBRARY_FAMILIES)


@each_case
def test_greedy_decoding_with_a_cache_writes_what_the_library_writes(tmp_path: Path, case: str) -> None:
    """Also where dynamic frequencies pass the trained length, and where a window has moved past the prompt."""
    library = saved(case, tmp_path).double().eval()
    prompt, new = batch()[0][:1, :12], 24
    ids = library.generate(prompt, max_new_tokens=new, min_new_tokens=new, do_sample=False, eos_token_id=None)
    expected = ids[0, prompt.shape[1] :].tolist()
    level2, level3 = load_model(tmp_path).double(), v3.load_model(tmp_path).to(np.float64)
    for generate, model in ((generate2, level2), (generate3, level3)):
        assert generate(model, prompt.tolist(), max_new_tokens=new, eos_token_id=[]) == [expected]


@pytest.mark.parametrize("case", ["gemma2", "gpt_oss"])
def test_sampling_with_a_cache_draws_what_it_draws_without(tmp_path: Path, case: str) -> None:
    """Greedy decoding would not notice a cap of the logits that is missing after the prompt; the first draw does."""
    saved(case, tmp_path)
    options: dict[str, Any] = {"max_new_tokens": 12, "temperature": 2.0, "eos_token_id": []}
    prompts = batch()[0][:, :4].repeat(12, 1).tolist()  # 24 rows, each with draws of its own
    for generate, model in (
        (generate2, load_model(tmp_path).double()),
        (generate3, v3.load_model(tmp_path).to(np.float64)),
    ):
        assert generate(model, prompts, **options) == generate(model, prompts, use_cache=False, **options)

"""Levels 2 and 3: with the cache, in chunks or token by token, the logits are those of one pass over everything."""

import numpy as np
import pytest
import torch

from shared_data.model_files.config import ModelConfig as ArrayConfig
from tests.parity.arrays import integers
from tests.parity.inference_cases import prompts, trio
from tests.parity.model_cases import CASES, config_of
from tests.parity.recorder import ParityRecorder
from v2_handwritten.inference import kv_cache as v2
from v2_handwritten.inference.decoder import Decoder
from v2_handwritten.inference.generate import pad_left
from v2_handwritten.models.transformer import Transformer
from v2_handwritten.models.weight_layout import for_decoding
from v3_numpy_deep.autograd import no_grad
from v3_numpy_deep.inference import kv_cache as v3
from v3_numpy_deep.inference.decoder import Decoder as ArrayDecoder
from v3_numpy_deep.inference.generate import pad_left as pad_left_array
from v3_numpy_deep.models.transformer import Transformer as ArrayTransformer
from v3_numpy_deep.models.weight_layout import for_decoding as for_decoding_arrays


@pytest.mark.parametrize("case", CASES)
def test_a_prompt_in_chunks_gives_the_logits_of_one_pass(parity: ParityRecorder, case: str) -> None:
    _, ours, arrays = trio(case)
    ids = integers(5, 96, 2, 21)
    with torch.inference_mode(), no_grad():
        cache, array_cache = (
            v2.KVCache(ours.config, 2, 30, torch.float64),
            v3.KVCache(arrays.config, 2, 30, np.float64),
        )
        chunks = [slice(0, 8), slice(8, 9), slice(9, 21)]
        chunked = [ours(torch.from_numpy(ids[:, chunk]), cache=cache) for chunk in chunks]
        array_chunked = [arrays(ids[:, chunk], cache=array_cache).data for chunk in chunks]
        whole = ours(torch.from_numpy(ids))
    assert cache.length == array_cache.length == 21
    for level, logits in (("v2-v2", torch.cat(chunked, 1)), ("v3-v2", np.concatenate(array_chunked, 1))):
        parity(
            component="kv cache",
            quantity="chunked prefill logits",
            levels=level,
            actual=logits,
            expected=whole,
            tolerance=3e-14,
        )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rows", [1, 3], ids=["one prompt", "padded batch"])
@pytest.mark.parametrize("loaded", [False, True], ids=["new", "loaded"])
def test_decode_steps_give_the_logits_of_one_pass(
    parity: ParityRecorder, case: str, rows: int, loaded: bool
) -> None:
    """Joined matrices, rotation tables, masks and windows are nothing but another order of summation."""
    _, ours, arrays = trio(case)
    if loaded:  # their matrices lie in memory as those of a loaded model
        lay_out(ours, arrays)
    texts = [prompt + integers(row, 96, 80).tolist() for row, prompt in enumerate(prompts(case)[:rows])]
    longest = max(len(text) - 80 for text in texts)
    with torch.inference_mode(), no_grad():
        input_ids, starts = pad_left([text[:-80] for text in texts])
        array_ids, array_starts = pad_left_array([text[:-80] for text in texts])
        slots = np.arange(longest)
        inputs = {
            "position_ids": np.maximum(slots - array_starts[:, None], 0),
            "attention_mask": slots >= array_starts[:, None],
        }
        cache = v2.KVCache(ours.config, rows, longest + 80, torch.float64)
        array_cache = v3.KVCache(arrays.config, rows, longest + 80, np.float64)
        ours(input_ids, cache=cache, **{name: torch.from_numpy(value) for name, value in inputs.items()})
        arrays(array_ids, cache=array_cache, **inputs)
        decoder, array_decoder = Decoder(ours, cache, starts), ArrayDecoder(arrays, array_cache, array_starts)
        continued = np.array([text[-80:] for text in texts])
        steps = [decoder.step(torch.from_numpy(column)).clone() for column in continued.T.copy()]
        array_steps = [array_decoder.step(column).copy() for column in continued.T]
        whole = torch.cat([ours(torch.tensor([text]))[:, -80:] for text in texts])
    for level, logits in (("v2-v2", torch.stack(steps, 1)), ("v3-v2", np.stack(array_steps, 1))):
        parity(
            component=f"decoder, {case}",
            quantity="logits",
            levels=level,
            actual=logits,
            expected=whole,
            tolerance=3e-14,
        )


def lay_out(ours: Transformer, arrays: ArrayTransformer) -> None:
    head = ours.config.head_name
    ours.load_state_dict(dict(for_decoding(ours.state_dict().items(), head)), assign=True)
    ours.tie_weights()
    parameters = dict(arrays.named_parameters())
    for name, array in for_decoding_arrays(((n, p.data) for n, p in parameters.items()), head):
        parameters[name].data = array


def test_a_cache_too_short_says_so() -> None:
    cache = v2.KVCache(config_of("llama GQA"), 1, 4)
    with pytest.raises(AssertionError, match="holds 4 positions, 5 are needed"):
        cache.update(0, torch.zeros(1, 2, 5, 8), torch.zeros(1, 2, 5, 8))


def test_the_formula_of_memory_counts_the_bytes_of_the_cache() -> None:
    """The exercise of kv_cache.md: 2 · layers · K · D numbers a token, so MQA takes 1/H of MHA."""
    for case in CASES:
        config, array_config = config_of(case), ArrayConfig.from_hf(config_of(case).to_hf())
        (states,) = v2.KVCache(config, 3, 50).states
        assert states.numel() * 4 == 3 * 50 * v2.bytes_per_token(config), case
        (array_states,) = v3.KVCache(array_config, 3, 50).states
        assert array_states.nbytes == 3 * 50 * v3.bytes_per_token(array_config), case
    sizes = [v2.bytes_per_token(config_of(case)) for case in ("llama MHA, untied", "llama GQA")]
    assert sizes == [2 * 2 * 4 * 8 * 4, 2 * 2 * 2 * 8 * 4]

"""Level 3: everything down to the derivative, in NumPy. What a notebook needs is imported from here; nothing is loaded before it is used.

from v3_numpy_deep import generate, load_model, load_tokenizer

model, tokenizer = load_model("runs/v3/tiny/sft"), load_tokenizer("runs/v3/tiny/sft")
print(tokenizer.decode(generate(model, [tokenizer.encode("Once")], max_new_tokens=32)[0]))
"""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "load_model": "v3_numpy_deep.models.checkpoint",
    "load_tokenizer": "v3_numpy_deep.data_pipeline.tokenizer.tokenizer",
    "generate": "v3_numpy_deep.inference.generate",
    "ModelConfig": "shared_data.model_files.config",
    "new_model": "v3_numpy_deep.models.transformer",
    "make_optimizer": "v3_numpy_deep.pretrain.components.muon",
    "train_step": "v3_numpy_deep.pretrain.components.training",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)

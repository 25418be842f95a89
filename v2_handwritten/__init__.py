"""Level 2: every algorithm by hand, in PyTorch. What a notebook needs is imported from here; nothing is loaded before it is used.

from v2_handwritten import generate, load_model, load_tokenizer

model, tokenizer = load_model("runs/v2/tiny/sft"), load_tokenizer("runs/v2/tiny/sft")
print(tokenizer.decode(generate(model, [tokenizer.encode("Once")], max_new_tokens=32)[0]))
"""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "load_model": "v2_handwritten.models.checkpoint",
    "load_tokenizer": "v2_handwritten.data_pipeline.tokenizer.tokenizer",
    "generate": "v2_handwritten.inference.generate",
    "inspect": "v2_handwritten.inference.inspection",
    "ModelConfig": "shared_data.model_files.config",
    "new_model": "v2_handwritten.models.transformer",
    "make_optimizer": "v2_handwritten.pretrain.components.muon",
    "train_step": "v2_handwritten.pretrain.components.training",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)

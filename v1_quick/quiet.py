"""Imported before the libraries: they remark on what is meant here, and draw progress bars for everything.

Meant are token ids that follow the tokenizer, packing without flash attention, an experimental trainer, each other's old names, kernels
for a GPU where there is none. The bars of training stay.

    import v1_quick.quiet
"""

import logging
import os
import warnings

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("DATASETS_VERBOSITY", "critical")  # it would print its errors beside ours
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
warnings.filterwarnings("ignore", message=r"var\(\): degrees of freedom")  # of PPO with a single minibatch
# torchao looks for GPU kernels that are not there, and tells torch what it knows already.
for library in ("trl", "bitsandbytes", "torchao", "torch.utils._pytree"):
    logging.getLogger(library).setLevel(logging.ERROR)

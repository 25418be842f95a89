"""Bytes written as visible characters, as GPT-2 began it and every byte-level `tokenizer.json` still has it.

`tokenizers` knows the alphabet; levels 2 and 3 build it.

    python -c "from v1_quick.data_pipeline.tokenizer.byte_level import ALPHABET; print(''.join(ALPHABET))"
"""

from tokenizers.pre_tokenizers import ByteLevel

# In the order in which the trainer numbers the bytes.
ALPHABET = sorted(ByteLevel.alphabet())

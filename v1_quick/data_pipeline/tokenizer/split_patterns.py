"""Split patterns: where text is cut before BPE, so that no token ever crosses a word boundary.

Here they are only strings: `tokenizers` runs them. Levels 2 and 3 compile them; the theory is in
`v2_handwritten/data_pipeline/tokenizer/tokenizer.md`.

    python -c "from v1_quick.data_pipeline.tokenizer.split_patterns import PATTERNS; print(PATTERNS['gpt4'])"
"""

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT4_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {"gpt2": GPT2_PATTERN, "gpt4": GPT4_PATTERN}

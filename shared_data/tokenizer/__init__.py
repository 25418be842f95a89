"""Everything of a tokenizer but the merges: files, added tokens, pre-tokens, chat template."""

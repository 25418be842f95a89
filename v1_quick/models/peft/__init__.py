"""Adapters: PEFT's LoRA, on a base that bitsandbytes may store in 4 bits."""

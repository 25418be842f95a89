"""Parameter-efficient fine-tuning: low-rank adapters, 4-bit base weights, adapter folders."""

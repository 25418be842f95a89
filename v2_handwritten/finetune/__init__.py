"""Instruction tuning: from a model that continues text to one that answers; all weights or adapters only."""

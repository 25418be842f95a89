"""Data and evaluation of the alignment stages: preference pairs, prompts, rewards, and what a policy is worth before and after."""

"""What surrounds generation: arguments, prompts, streamed text, conversations, the commands. The decoding itself is the levels' own."""

"""What PEFT adapters and 4-bit weights are, without the mathematics: configurations, folders, target modules, constants, memory."""

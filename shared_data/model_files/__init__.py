"""What a Hugging Face folder says about a model: its configuration, its parameters' names and first values."""

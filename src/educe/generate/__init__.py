"""Text from language models: tokenizers, chat templates, sequences, sampling, constrained output."""

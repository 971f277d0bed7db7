"""A model's texts: tokenizers, chat templates, constraints, stop strings, calls of tools."""

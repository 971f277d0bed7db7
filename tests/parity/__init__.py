"""Comparisons with PyTorch, which `make test` does not need."""

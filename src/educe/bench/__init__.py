"""Measuring and comparing engines: how fast, how much memory, how equal, and on what machine."""

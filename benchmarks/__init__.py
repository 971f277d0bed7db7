"""Benchmarks: what Educe costs and gains beside its peers, as ratios taken in one run."""

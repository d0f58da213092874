"""Benchmarks: each figure beside its goal and, where there is one, the bound that no program in
Python can beat, measured in the same run. A module per subject with a ``measure`` function."""

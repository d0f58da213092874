"""Benchmarks: each figure beside its goal and, where there is one, the bound that no program in
Python can beat, measured in the same run.

A module per subject. Its ``measure`` returns figures; where it has ``options``, these add arguments
to the command's parser, and ``measure`` is called with what they parsed. Bounds in C come from
:mod:`.bound`.
"""

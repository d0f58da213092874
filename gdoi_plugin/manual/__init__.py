"""Manual pages, shell completion and the reference of options, written from what the programs are.

What an option may be and is by default comes from the configuration's models, what it means from
the tables beside this file; commands come from the parsers of the command lines.
``python -m gdoi_plugin.manual PREFIX`` writes everything below ``PREFIX/share``.
"""

"""A module here has ``targets()``; :func:`tests.fuzz.target.all_targets` finds it."""

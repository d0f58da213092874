"""Hostile input: any octets at every decoder, and at every engine from inside its protection.

``target``     what a target is, and the list of all of them, found by themselves
``targets``    one module for each kind: it turns octets into an input, and says what must hold
``mutation``   a mutator that needs no instrumentation, for a million inputs within a minute
``corpus``     interesting inputs, one text file a target, found by the fuzzer and kept
``worker``     one target under atheris, which is guided by coverage
``campaign``   many workers, a live table; what ``deploy/fuzz`` runs

``test_inputs`` is the bounded share of ``deploy/test``.
"""

"""What a host needs for a group member or a key server, tested: ``gdoictl check``.

Each module here has the tests of one area, functions that give a :class:`~.finding.Finding` for
everything they look at; :mod:`.run` calls them. No daemon has to run, and nothing of the host
changes: IPsec is tried in a network namespace of its own (:mod:`.probing`), ports are bound and
groups joined for a moment with the daemons' own code.
"""

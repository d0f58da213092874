"""The key server's memory: what was sent is never reused, what was counted is never lost.

``schema``    the tables. Whatever changes together is one record.
``sqlite``    the file: made, locked for one process, looked after.
``writing``   records of the engine's steps to rows, ``reading`` rows to what engines start from.
``mark``      how far it has come, beside it: an older one that was put back is found out.
``store``     one durable transaction for each step.
"""

from .store import Store

__all__ = ["Store"]

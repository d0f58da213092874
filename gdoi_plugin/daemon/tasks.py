"""Tasks that are to run as long as the daemon."""

from __future__ import annotations

import asyncio


def ended(task: asyncio.Task[None]) -> None:
    """A done callback: what a task raised that nobody awaits, for the loop's exception handler.

    It is the end of the daemon whatever it was (:meth:`Shell.run`), a lack of file descriptors too:
    nobody begins the task again.
    """
    if not task.cancelled() and (error := task.exception()) is not None:
        context = {"message": f"{task.get_name()} has ended", "exception": error, "task": task}
        task.get_loop().call_exception_handler(context)

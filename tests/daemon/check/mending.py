"""A finding by its name, and what it says is to be done, done."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterable

from gdoi_plugin.daemon.check.finding import Finding, Verdict
from tests.daemon.children import eventually

OK, WARN, FAIL = Verdict.OK, Verdict.WARN, Verdict.FAIL
Tests = Callable[[], Iterable[Finding]]


def the(findings: Iterable[Finding], test: str) -> Finding:
    """The one whose name begins so."""
    (found,) = (finding for finding in findings if finding.test.startswith(test))
    return found


def mended(tests: Tests, test: str, verdict: Verdict, said: str, **places: str) -> None:
    """It is found, what it says to do is done as it stands, and it is found no more.

    ``places``: what an operator would put where the command has a word in capitals.
    """
    finding = the(tests(), test)
    assert finding.verdict is verdict, finding
    assert said in finding.found
    command = finding.mend
    for place, value in places.items():
        assert place in command, command
        command = command.replace(place, value)
    # Without -e: a second command may be for after the next boot, on a disk that is read-only here.
    subprocess.run(["sh", "-c", command], capture_output=True, check=False)
    # A link is up some time after it was told to be.
    eventually(lambda: the(tests(), test).verdict is OK, f"what {command} does")


def verdicts(findings: Iterable[Finding]) -> dict[str, Verdict]:
    return {finding.test: finding.verdict for finding in findings}


def as_nobody(work: Callable[[], object]) -> str:
    """What comes of it, as text, in a child without root's rights."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setuid(65534)
            os.write(writer, str(work()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said

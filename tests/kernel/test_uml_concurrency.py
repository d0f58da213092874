"""Transactions while another program changes the same tables."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from gdoi_xfrm import (
    DeletePolicy,
    DeleteSa,
    Direction,
    InstallSa,
    KernelError,
    Monitor,
    Operation,
    Outcome,
    UpdatePolicy,
    Xfrm,
)

from tests.kernel.namespaces import eventually, ip
from tests.kernel.values import CBC, GCM, policy, sa

pytestmark = pytest.mark.uml

ROUNDS = 40
ADD = "xfrm state add src 0.0.0.0 dst {} proto esp spi {} mode transport reqid 1 " + (
    f"aead 'rfc4106(gcm(aes))' 0x{GCM.key.hex()} 128"
)


@contextmanager
def endlessly(folder: Path, *commands: str) -> Iterator[None]:
    """`ip` runs these again and again, whatever comes of them; at the end the last has run."""
    batch, more = folder / "commands", folder / "more"
    batch.write_text("\n".join(commands) + "\n")
    more.touch()
    loop = f"while [ -e {more} ]; do ip -force -batch {batch}; done"
    quiet = subprocess.DEVNULL
    with subprocess.Popen(["sh", "-c", loop], stdout=quiet, stderr=quiet):
        try:
            yield
        finally:
            more.unlink()


def others(monitor: Monitor, own: int) -> bool:
    """Whether somebody else has changed something."""
    return any(getattr(event, "pid", None) != own for event in monitor.read())


def rekey(spi: int) -> list[Operation]:
    return [
        InstallSa(sa(spi)),
        InstallSa(sa(spi, CBC, 6)),
        UpdatePolicy(policy(spi)),
        UpdatePolicy(policy(0, Direction.IN)),
        DeleteSa(sa(spi - 1).key),
        DeleteSa(sa(spi - 1, version=6).key),
    ]


def test_others_change_what_is_theirs(xfrm: Xfrm, tmp_path: Path) -> None:
    """Every transaction succeeds, and nothing of the others' is touched."""
    theirs = [ADD.format("239.9.9.9", spi) for spi in range(1, 60)]
    theirs += ["xfrm policy add dir out dst 239.9.9.9 action block"]
    theirs += [f"xfrm state delete dst 239.9.9.9 proto esp spi {spi}" for spi in range(1, 60)]
    theirs += ["xfrm policy delete dir out dst 239.9.9.9"]
    with Monitor() as monitor, endlessly(tmp_path, *theirs):
        for spi in range(1, ROUNDS):
            eventually(lambda: others(monitor, xfrm.pid))
            outcomes = [result.outcome.name for result in xfrm.transaction(rekey(spi))]
            assert outcomes[:4] == ["ADDED", "ADDED", "UPDATED", "UPDATED"]
    ours = {state.sa.spi for state in xfrm.dump_sas() if state.sa.reqid == sa(1).reqid}
    assert ours == {ROUNDS - 1}


def test_others_take_away_and_put_in_the_way(xfrm: Xfrm, tmp_path: Path) -> None:
    """A transaction is done, or says why not; and the next undisturbed one is done."""
    spis = range(1, ROUNDS)
    commands = ["xfrm state flush", "xfrm policy flush", "xfrm policy add dir out dst 239.1.1.1"]
    commands += [ADD.format("239.1.1.1", spi) for spi in spis]
    commands += [f"xfrm state delete dst 239.1.1.1 proto esp spi {spi}" for spi in spis]
    with Monitor() as monitor, endlessly(tmp_path, *commands):
        for spi in spis:
            eventually(lambda: others(monitor, xfrm.pid))
            try:
                results = xfrm.transaction(rekey(spi))
            except KernelError as error:
                assert error.operation in [str(op) for op in rekey(spi)]  # noqa: PT017
            else:
                assert Outcome.FAILED not in [result.outcome for result in results]
    ip("xfrm state flush")
    outcomes = [result.outcome.name for result in xfrm.transaction(rekey(ROUNDS))]
    assert outcomes == ["ADDED", "ADDED", "UPDATED", "UPDATED", "ABSENT", "ABSENT"]
    xfrm.transaction([DeletePolicy(policy().key), DeleteSa(sa(ROUNDS).key)])
    assert [state.sa.destination.version for state in xfrm.dump_sas()] == [6]

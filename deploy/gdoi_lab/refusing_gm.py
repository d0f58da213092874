"""``gdoi-gm`` on a kernel that refuses an SA once, with an error that is the kernel's own.

    python -m gdoi_lab.refusing_gm FLAG --config gm.toml

While the file FLAG exists, the next installation finds its SPI taken: an SA with the same
destination and SPI and other keys is put into the kernel just before, so the kernel answers the
agent's unchanged message with EEXIST. Then that SA and FLAG go, and everything is as usual.
"""

import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from gdoi_xfrm import AesGcm, InstallSa, Operation, Result, Sa

from gdoi_plugin.daemon import gm
from gdoi_plugin.daemon.own_tables import OwnTables


def _squat(sa: Sa) -> Sa:
    """An SA in the same place with a key nobody has."""
    return Sa(sa.source, sa.destination, sa.spi, sa.mode, sa.reqid, AesGcm(secrets.token_bytes(20)))


class RefusedOnce(OwnTables):
    """On a kernel where somebody else has the SPI, once."""

    flag: Path

    def transaction(self, operations: Sequence[Operation]) -> list[Result]:
        if not self.flag.exists():
            return super().transaction(operations)
        # What the member holds already is asked for again, and is not to be disturbed.
        new = [op.sa for op in operations if isinstance(op, InstallSa) and self._lacks(op.sa)]
        if not new:
            return super().transaction(operations)
        taken = _squat(new[0])
        self.add_sa(taken)
        try:
            return super().transaction(operations)
        finally:
            self.delete_sa(taken.destination, taken.spi)
            self.flag.unlink()

    def _lacks(self, sa: Sa) -> bool:
        return self.get_sa(sa.destination, sa.spi, sa.protocol) is None


if __name__ == "__main__":
    RefusedOnce.flag = Path(sys.argv.pop(1))
    vars(gm)["OwnTables"] = RefusedOnce
    sys.exit(gm.main())

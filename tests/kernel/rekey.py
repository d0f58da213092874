"""A rekey as a list of operations, the tables it happens in, and how to compare those."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gdoi_xfrm import (
    AddPolicy,
    AddSa,
    DeletePolicy,
    DeleteSa,
    Direction,
    InstallSa,
    Lifetime,
    Mark,
    Operation,
    Policy,
    SaState,
    Selector,
    UpdatePolicy,
    UpdateSa,
    Xfrm,
)

from tests.kernel.namespaces import ip
from tests.kernel.values import ANY, CBC, EVERYWHERE, policy, sa, template

OLD, OTHER, LIVE, QUIET = 0x100, 0x101, 0x102, 0x103
# New SAs, one that is installed already, policies new and switched, what is old removed.
REKEY: Sequence[Operation] = (
    InstallSa(sa(0x200)),
    InstallSa(sa(LIVE)),
    AddSa(sa(0x201, CBC, 6)),
    InstallSa(sa(0x202, replay_window=64, esn=True, mark=Mark(1, 0xFF))),
    UpdateSa(sa(OTHER, lifetime=Lifetime(hard_seconds=500))),
    UpdatePolicy(policy(0x200)),
    UpdatePolicy(policy(0, Direction.IN, 6)),
    AddPolicy(policy(0, Direction.IN)),
    DeletePolicy(policy(0, Direction.FWD, priority=5).key),
    DeleteSa(sa(OLD).key),
    DeleteSa(sa(0x999).key),
)
ADOPTED = 1  # the place of the operation that changes nothing
LARVAL = 0x200
LARVAL_PORT = 5001
# For packets to one port, which ask for an SA that is not there before the rekey.
ASKING = Policy(
    Selector(EVERYWHERE[4], policy().selector.destination, 17, 0, LARVAL_PORT),
    Direction.OUT,
    1,
    templates=(template(LARVAL),),
)


def make_busy(xfrm: Xfrm) -> None:
    """SAs and policies in use, some with more than our dataclasses hold."""
    for spi in (OLD, OTHER, LIVE, QUIET):
        xfrm.add_sa(sa(spi, output_sequence=spi, source=ANY[4]))
    xfrm.add_policy(policy(OLD))
    xfrm.add_policy(policy(0, Direction.FWD, priority=5))
    xfrm.add_policy(ASKING)
    ip(
        "xfrm policy add dir in src ::/0 dst ff05::1:1/128 index 1024 priority 77 flag icmp "
        "tmpl proto esp mode transport reqid 1 level use"
    )


def entries(text: str) -> list[str]:
    """What `ip` shows, entry by entry, without order, current lifetimes and numbers sent."""
    text = re.sub(r"oseq(-hi)? 0x[0-9a-f]+", "oseq", text)
    lines = [line for line in text.splitlines() if not re.match(r"\s+(add \d|\d+\(bytes\))", line)]
    return sorted(re.split(r"\n(?=\S)", "\n".join(lines)))


def held(xfrm: Xfrm) -> tuple[list[SaState], list[Policy]]:
    """What the tables hold, but for larval SAs and for when SAs and policies were used.

    An SA that was deleted and put back may have skipped sequence numbers, but used none twice.
    """
    states = [replace(state, used_time=0) for state in xfrm.dump_sas() if not state.larval]
    for place, state in enumerate(states):
        if state.sa.spi == OLD:
            states[place] = replace(state, output_sequence=min(state.output_sequence, OLD))
    states.sort(key=lambda state: (state.sa.spi, state.sa.destination.version))
    return states, sorted(xfrm.dump_policies(), key=lambda policy: str(policy.key))


def tables(xfrm: Xfrm) -> tuple[Any, ...]:
    """The same, and as another program sees them."""
    return held(xfrm), entries(ip("xfrm state")), entries(ip("-s xfrm policy"))

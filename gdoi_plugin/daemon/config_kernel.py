"""A member's ``[[group]]`` as far as it is about the kernel: names are swanctl's."""

from __future__ import annotations

import re
from typing import Annotated, Self

from gdoi_xfrm import MAX_REPLAY_WINDOW, Mark
from pydantic import PlainValidator, model_validator

from .config_values import Section, number_range
from .guard import BLOCK_PRIORITY, BYPASS_PRIORITY
from .kernel_options import MOST_SPECIFIC, PRIORITY, REPLAY_WINDOW, KernelOptions, Scope

# Behind what always has to pass, before what blocks.
LOWEST, HIGHEST = BYPASS_PRIORITY + MOST_SPECIFIC + 1, BLOCK_PRIORITY - 1


def _mark(value: object) -> Mark:
    number = r"(0x[0-9a-fA-F]{1,8}|[0-9]{1,10})"
    found = re.fullmatch(f"{number}(?:/{number})?", value) if isinstance(value, str) else None
    try:
        if found is not None:
            numbers = [int(text, 0) for text in found.groups() if text is not None]
            mark = Mark(*numbers)
            if mark.mask and not mark.value & ~mark.mask:
                return mark
    except ValueError:
        pass
    raise ValueError(
        f"{value!r} is no mark, write it as 0x10 or 0x10/0xff, with a value in the mask"
    )


MarkText = Annotated[Mark, PlainValidator(_mark)]


class KernelSection(Section):
    priority: Annotated[int, number_range(LOWEST, HIGHEST)] = PRIORITY
    replay_window: Annotated[int, number_range(0, MAX_REPLAY_WINDOW)] = REPLAY_WINDOW
    mark_in: MarkText | None = None
    mark_out: MarkText | None = None
    mark_in_sa: bool = False
    if_id: Annotated[int, number_range(0, 0xFFFFFFFF)] = 0

    @model_validator(mode="after")
    def _one_sa_serves_both_directions(self) -> Self:
        if self.mark_in_sa and (self.mark_in is None or self.mark_in != self.mark_out):
            raise ValueError(
                "mark_in_sa needs mark_in, and the same mark_out: a group's SA receives and sends"
            )
        return self

    def kernel_options(self) -> KernelOptions:
        return KernelOptions(
            priority=self.priority,
            replay_window=self.replay_window,
            scope=Scope(self.mark_in, self.mark_out, self.if_id),
            mark_in_sa=self.mark_in_sa,
        )

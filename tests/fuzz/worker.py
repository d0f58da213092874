"""``python -m tests.fuzz.worker TARGET LIBFUZZER-OPTIONS...``: one target under atheris."""

from __future__ import annotations

import sys

import atheris


def main(argv: list[str]) -> None:
    name, *options = argv
    # What is to be guided by coverage must be instrumented while it is imported.
    with atheris.instrument_imports(include=["gdoi_plugin"]):
        from tests.fuzz.standing import Witness
        from tests.fuzz.target import MAX_INPUT, all_targets

        check = all_targets()[name].check
    Witness.every = 1  # the input at hand is to be the guilty one

    def one(data: bytes) -> None:
        check(data)

    atheris.Setup([name, f"-max_len={MAX_INPUT}", *options], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])

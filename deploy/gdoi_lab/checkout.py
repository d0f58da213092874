"""Where the source tree is, and the environment the lab's programs get."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
VENV = Path(sys.prefix).resolve()
PYTHON = str(VENV / "bin" / "python") if sys.prefix != sys.base_prefix else sys.executable

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# What of the caller's environment a command in the lab kernel may see.
_PASSED = ("LANG", "LC_ALL", "TERM", "COLUMNS", "LINES", "CI", "NO_COLOR", "FORCE_COLOR")
_PASSED_PREFIXES = ("GDOI_", "PYTEST_", "HYPOTHESIS_")


def lab_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a command in the lab kernel: small, the same on host and UML."""
    env = {
        name: value
        for name, value in os.environ.items()
        if name in _PASSED or name.startswith(_PASSED_PREFIXES)
    }
    env.pop("PYTEST_CURRENT_TEST", None)
    env.setdefault("LANG", "C.UTF-8")
    env.update(
        PATH=f"{VENV / 'bin'}:{SYSTEM_PATH}",
        PYTHONPATH=str(CHECKOUT / "deploy"),
        PYTHONDONTWRITEBYTECODE="1",
        PYTHONUNBUFFERED="1",
    )
    env.update(extra or {})
    return env

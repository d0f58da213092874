"""The sessions of deploy/docs/getting-started.md, line by line, on three hosts of the lab."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from gdoi_lab.net import Host, Network
from gdoi_lab.waiting import wait_until

pytestmark = pytest.mark.uml
PAGE = Path(__file__).parents[3] / "deploy" / "docs" / "getting-started.md"
HOSTS = {"gcks": "192.0.2.1", "gm1": "192.0.2.11", "gm2": "192.0.2.12"}
# Each host's own, where the page has /etc/gdoi: the lab's root file system is read-only.
ETC = "/run/gdoi/etc"
LIMIT = 150.0
# Who looks takes the one processor from those that are looked at.
PAUSE = 0.3


@dataclass(frozen=True)
class Line:
    """A command at a prompt, and what it prints."""

    host: str
    command: str
    output: tuple[str, ...]


def blocks(kind: str) -> Iterator[str]:
    yield from re.findall(rf"^```{kind}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def configurations() -> dict[str, str]:
    """By the name in their first line."""
    return {text.partition("\n")[0].removeprefix("# "): text for text in blocks("toml")}


def sessions() -> Iterator[list[Line]]:
    for text in blocks("console"):
        found = re.findall(
            r"^(gcks|gm1|gm2)# (.*)\n((?:(?!(?:gcks|gm1|gm2)# ).*\n)*)", text, re.MULTILINE
        )
        yield [Line(host, command, tuple(said.splitlines())) for host, command, said in found]


def pattern(line: str) -> re.Pattern[str]:
    """What the line is each time: numbers and blanks differ, and ``...`` is anything."""
    text = re.sub(r"0x[0-9a-f]{8}", "0x0", line.strip())
    parts = re.split(r"(\.\.\.|0x0|\d+|\s+)", text)
    kinds = {"...": ".*", "0x0": "0x[0-9a-f]{8}"}
    made = [
        kinds.get(part)
        or (r"\d+" if part.isdigit() else r"\s+" if part.isspace() else re.escape(part))
        for part in parts
        if part
    ]
    return re.compile("".join(made))


def missing(expected: tuple[str, ...], said: str) -> str | None:
    """The first line of the page that does not come, in its order, in what was said."""
    lines = iter(said.splitlines())
    for line in expected:
        if line != "..." and not any(pattern(line).search(there) for there in lines):
            return line
    return None


class Lab:
    """Three hosts with the page's addresses; each has a /run/gdoi of its own."""

    def __init__(self, network: Network, folder: Path) -> None:
        self._network, self._folder = network, folder
        self.problems: list[str] = []
        for name, address in HOSTS.items():
            host = network[name]
            host.ip("-4", "address", "flush", "dev", "eth0")
            host.ip("address", "add", f"{address}/24", "dev", "eth0")
            host.ip("route", "replace", "multicast", "224.0.0.0/4", "dev", "eth0")
            (self.run_of(name) / "etc").mkdir(parents=True)
            psk = self.run_of(name) / "etc" / "lan.psk"
            psk.write_text("as if by openssl rand")
            psk.chmod(0o600)

    def run_of(self, name: str) -> Path:
        return self._folder / name / "run"

    def put(self, name: str, file: str, text: str) -> None:
        section = "[member]\n" if file == "gm.toml" else "[key_server]\n"
        state = "state" if file == "gm.toml" else "state.sqlite"
        more = f'{section}state = "/run/gdoi/{state}"\ncontrol_group = "root"\n'
        path = self.run_of(name) / "etc" / file
        path.write_text(text.replace(section, more, 1))
        path.chmod(0o600)

    def do(self, line: Line) -> None:
        """A daemon goes on; of everything else the page knows what it says."""
        host = self._network[line.host]
        program, background = line.command.removesuffix(" &"), line.command.endswith(" &")
        command = self._inside(line.host, program)
        if not background:
            self._say(host, command, line)
            return
        process = host.popen(command, self._folder / line.host / "log")
        what = f"{line.host}: {program}"
        wait_until(
            lambda: not process.running or missing(line.output, process.log_text()) is None,
            LIMIT,
            what,
            interval=PAUSE,
        )
        assert process.running, process.log_text()

    def _say(self, host: Host, command: list[str], line: Line) -> None:
        """What only looks is repeated until it sees what the page has."""
        said = ""

        def as_on_the_page() -> bool:
            nonlocal said
            done = host.run(command, check=False, timeout=LIMIT)
            said = done.stdout + done.stderr
            return missing(line.output, said) is None

        if line.command.startswith(("cat ", "grep ")):
            what = f"{line.command}: {line.output}"
            wait_until(as_on_the_page, LIMIT, what, interval=PAUSE)
        elif not as_on_the_page():
            first = missing(line.output, said)
            self.problems.append(f"{line.command}: no {first!r} in:\n{said}")

    def _inside(self, name: str, program: str) -> list[str]:
        script = f"mkdir -p /run/gdoi && mount --bind {self.run_of(name)} /run/gdoi"
        path = f"PATH={Path(sys.prefix) / 'bin'}:$PATH"
        program = program.replace("/etc/gdoi", ETC)
        run = f"exec {program}" if program.startswith("gdoi-") else program
        return ["bash", "-c", f"{script} && export {path} && {run}"]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Network(list(HOSTS), tmp_path / "net") as network:
        yield Lab(network, tmp_path)


def test_as_the_page_has_it(lab: Lab) -> None:
    files = configurations()
    assert set(files) == {f"/etc/gdoi/{f}" for f in ("gcks.toml", "gm.toml", "gcks.toml, unicast")}
    lab.put("gcks", "gcks.toml", files["/etc/gdoi/gcks.toml"])
    for name in ("gm1", "gm2"):
        lab.put(name, "gm.toml", files["/etc/gdoi/gm.toml"])
    *multicast, unicast = sessions()
    assert sum(map(len, multicast)) > 10
    for line in [line for session in multicast for line in session]:
        lab.do(line)
    lab.put("gcks", "gcks.toml", files["/etc/gdoi/gcks.toml, unicast"])
    for line in unicast:
        lab.do(line)
    assert not lab.problems, "\n".join(lab.problems)

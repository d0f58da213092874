"""The Debian package and the wheel: built, installed in a copy of this host, used, taken out."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gdoi_plugin import __version__
from gdoi_plugin.manual.__main__ import COMPLETIONS
from gdoi_plugin.manual.pages import pages
from tests.daemon.children import eventually
from tests.deploy.copied_host import CopiedHost, copied_host
from tests.deploy.examples import examples, interfaces, prepare, program

ROOT = Path(__file__).parents[2]
PROGRAMS = ("gdoi-gm", "gdoi-gcks", "gdoictl")
DOC = "/usr/share/doc/gdoi-plugin"
GCKS = """\
[key_server]
address = "192.0.2.1"

[[peer]]
address = "192.0.2.0/24"
psk_file = "lan.psk"

[[group]]
name = "video"
id = 1234
members = ["192.0.2.11"]
rekey.signature = "ecdsa256"

[[group.tek]]
destination = "239.192.1.1"
proposal = "aes256-sha256"
"""
# Of all its arguments, as the program --check; which takes a second to begin.
CHECKS = """
import sys
from {module} import main
for file in sys.argv[1:]:
    sys.argv[1:] = ["--config", file, "--check"]
    print("passed" if main() == 0 else "failed", file)
"""
# As the unit starts it, without a systemd: its user and its one capability.
AS_GDOI = "setpriv --reuid=gdoi --regid=gdoi --init-groups --no-new-privs"
BIND = "--inh-caps=-all,+net_bind_service --ambient-caps=+net_bind_service"


@dataclass(frozen=True)
class Built:
    folder: Path
    deb: Path
    wheel: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("built")
    done = subprocess.run(
        [ROOT / "deploy/package", "--out", folder],
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    deb, wheel = (Path(line) for line in done.stdout.splitlines())
    return Built(folder, deb, wheel)


@pytest.fixture(scope="module")
def host(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CopiedHost]:
    with copied_host(tmp_path_factory.mktemp("copy"), built.folder) as copy:
        yield copy


def dpkg(host: CopiedHost, *words: object) -> str:
    """With documentation also where the host, an image of a container say, wants none; others'
    triggers (man-db's takes longer than all the rest) are left for later."""
    options = ("--path-include=/usr/share/*", "--no-triggers", "--force-unsafe-io")
    return host.said("dpkg", *options, *words)


def different(host: CopiedHost) -> set[str]:
    """Files that this host has not, or others than this host has; a device stands for one that is
    gone."""
    found = host.said(
        "find", "/mnt", "(", "-type", "f", "-o", "-type", "l", ")", "-printf", "/%P\\n"
    )
    return set(found.splitlines())


def test_what_is_built(built: Built) -> None:
    fields = subprocess.run(
        ["dpkg-deb", "--field", built.deb], capture_output=True, text=True, check=True
    ).stdout
    architecture = re.search("^Architecture: (.*)$", fields, re.MULTILINE)
    assert architecture is not None
    assert built.deb.name == f"gdoi-plugin_{__version__}_{architecture[1]}.deb"
    assert built.wheel.name == f"gdoi_plugin-{__version__}-py3-none-any.whl"
    assert sorted(path.name for path in built.folder.iterdir()) == sorted(
        [built.deb.name, built.wheel.name]
    )


def test_installed(built: Built, host: CopiedHost) -> None:
    dpkg(host, "--install", f"/tmp/given/{built.deb.name}")
    for name in PROGRAMS:
        assert host.said(name, "--version") == f"{name} {__version__}\n"
    assert host.said(
        "stat", "-c", "%U:%G %a", "/run/gdoi", "/etc/gdoi", "/etc/gdoi/credentials"
    ) == ("gdoi:gdoi 750\nroot:gdoi 750\nroot:root 700\n")
    for page in pages():
        host.said("gzip", "--test", f"/usr/share/man/man{page[-1]}/{page}.gz")
    for completion in COMPLETIONS.values():
        assert "gdoictl" in host.said("cat", f"/usr/{completion}")
    assert dpkg(host, "--verify", "gdoi-plugin") == ""
    assert "cryptography==" in host.said("cat", f"{DOC}/bundled.txt")
    assert f"gdoi-plugin ({__version__})" in host.said("zcat", f"{DOC}/changelog.gz")


def test_its_readme_leads_to_its_pages(host: CopiedHost) -> None:
    links = re.findall(r"\]\(([^):#]+)", host.said("cat", f"{DOC}/README.md"))
    assert "docs/getting-started.md" in links
    host.said("ls", *(f"{DOC}/{link}" for link in links))


def test_nothing_of_the_builder_is_in_it(built: Built, host: CopiedHost) -> None:
    """No path of the machine that built it, and nothing that belongs to a user of it."""
    found = host.run(
        f"grep -rlI -e {ROOT} -e /tmp/tmp. /usr/lib/gdoi-plugin /lib/systemd/system/gdoi-*",
        check=False,
    )
    assert found.stdout == ""
    listed = subprocess.run(
        ["dpkg-deb", "--contents", built.deb], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert {line.split()[1] for line in listed} == {"root/root"}
    assert not [
        line for line in listed if re.search(r" \./(etc|var|home|root|tmp|usr/local)/", line)
    ]


def test_it_uses_its_own_libraries(host: CopiedHost) -> None:
    """Debian's own Python modules, older ones maybe, are out of sight."""
    show = r"import sys, cryptography; print(*sys.path, cryptography.__file__, sep='\n')"
    paths = host.said("/usr/lib/gdoi-plugin/bin/python", "-sP", "-c", show).splitlines()
    assert not [path for path in paths if "dist-packages" in path]
    assert paths[-1].startswith("/usr/lib/gdoi-plugin/")
    launcher = host.said("head", "-1", "/usr/bin/gdoi-gm")
    assert launcher == "#!/usr/lib/gdoi-plugin/bin/python -sP\n"


def test_each_example_passes(built: Built, host: CopiedHost) -> None:
    host.run(f"cp -r {DOC}/examples /tmp/given/examples")
    folder = built.folder / "examples"
    prepare(folder)
    host.run(" && ".join(interfaces()))
    assert examples(folder) == examples()
    # The agents' programs look at their interface: this host has the examples' ones now.
    for name in ("gdoi-gm", "gdoi-gcks"):
        files = [f"/tmp/given/examples/{path}" for path in examples() if program(path) == name]
        script = CHECKS.format(module=f"gdoi_plugin.daemon.{name.removeprefix('gdoi-')}")
        done = host.run(
            shlex.join(["/usr/lib/gdoi-plugin/bin/python", "-sP", "-c", script, *files])
        )
        assert done.stdout.count("1 groups") == len(files), done.stdout + done.stderr
        assert re.findall("^passed (.*)$", done.stdout, re.MULTILINE) == files, done.stderr


def status(host: CopiedHost) -> str:
    done = host.run("gdoictl --socket /run/gdoi/gcks.vici --json status", check=False)
    return done.stdout if done.returncode == 0 else ""


def test_a_daemon_of_it_upgraded_removed_and_purged(built: Built, host: CopiedHost) -> None:
    deb = f"/tmp/given/{built.deb.name}"
    (built.folder / "gcks.toml").write_text(GCKS)
    host.run(
        "install -m 640 -g gdoi /tmp/given/gcks.toml /etc/gdoi/gcks.toml\n"
        "head -c 24 /dev/urandom | base64 | install -m 600 -o gdoi /dev/stdin /etc/gdoi/lan.psk\n"
        "install -d -o gdoi -g gdoi -m 700 /var/lib/gdoi\n"
        "ip address add 192.0.2.1/32 dev lo\n"
        f"{AS_GDOI} {BIND} gdoi-gcks >/tmp/log 2>&1 & echo $! >/tmp/pid"
    )
    eventually(lambda: '"video"' in status(host), "gdoictl answers")

    before = host.said("ls", "-l", "/var/lib/gdoi/gcks.sqlite", "/etc/gdoi")
    dpkg(host, "--install", deb)
    assert host.said("ls", "-l", "/etc/gdoi") in before
    assert '"video"' in status(host)

    host.run('kill "$(cat /tmp/pid)"')
    eventually(lambda: not status(host), "it has stopped")
    dpkg(host, "--remove", "gdoi-plugin")
    assert host.run("command -v gdoi-gcks", check=False).stdout == ""
    there = different(host)
    assert "/var/lib/gdoi/gcks.sqlite" in there
    assert {"/etc/gdoi/gcks.toml", "/etc/gdoi/lan.psk"} <= there
    assert not [path for path in there if path.startswith(("/usr/lib/gdoi", DOC, "/lib/systemd"))]

    dpkg(host, "--purge", "gdoi-plugin")
    left = [path for path in different(host) if "gdoi" in path]
    assert left == []
    assert (
        host.run("ls -d /etc/gdoi /var/lib/gdoi /run/gdoi /usr/lib/gdoi-plugin", check=False).stdout
        == ""
    )
    accounts = "/etc/passwd /etc/group /etc/shadow /etc/gshadow"
    assert host.run(f"grep gdoi {accounts}", check=False).stdout == ""
    # What else dpkg and useradd have written is their own.
    own = ("/var/lib/dpkg/", "/var/log/", "/var/cache/", "/etc/", "/tmp/", "/mnt")
    assert [path for path in different(host) if not path.startswith(own)] == []
    etc = {path for path in different(host) if path.startswith("/etc/")}
    assert {path.rstrip("-") for path in etc} <= {
        *accounts.split(),
        "/etc/subuid",
        "/etc/subgid",
        "/etc/.pwd.lock",
    }


def test_a_wheel(built: Built, tmp_path: Path) -> None:
    """In an environment of its own. Its libraries are the tests': that pip finds them by what the
    wheel says is how the package was built."""
    fresh = tmp_path / "fresh"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", fresh], check=True)
    python = fresh / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, str(built.wheel)], check=True)
    site = next(fresh.glob("lib/python3*/site-packages"))
    tests = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "libraries.pth").write_text(tests)
    for name in PROGRAMS:
        done = subprocess.run(
            [fresh / "bin" / name, "--version"],
            capture_output=True, text=True, check=True, cwd="/",
        )  # fmt: skip
        assert done.stdout == f"{name} {__version__}\n"
    show = "import gdoi_plugin, gdoi_xfrm; print(gdoi_plugin.__file__, gdoi_xfrm.__file__)"
    found = subprocess.run(
        [python, "-c", show], capture_output=True, text=True, check=True, cwd="/"
    )
    assert all(path.startswith(str(site)) for path in found.stdout.split())

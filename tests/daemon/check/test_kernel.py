"""What the kernel lacks. One that lacks nothing, and is then broken: test_uml_check."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import pytest

from gdoi_plugin.daemon.check import kernel, probing
from gdoi_plugin.daemon.check.kernel import USUAL_SUITES, check_kernel
from gdoi_plugin.daemon.check.probing import Answer, Refusal, Wish, ask, key_of
from gdoi_plugin.protocol.suites import TEK_SUITES
from tests.kernel.namespaces import Namespace, ip

from .mending import FAIL, OK, WARN, as_nobody, the, verdicts

NO_ESP = Refusal(errno.EPROTONOSUPPORT, "XFRM_MSG_NEWSA: Protocol not supported")
NO_GCM = Refusal(errno.ENOSYS, "XFRM_MSG_NEWSA: no such algorithm")
NO_XFRM = Refusal(errno.EPROTONOSUPPORT, "netlink socket: Protocol not supported")


def answering(monkeypatch: pytest.MonkeyPatch, **refusals: Refusal) -> None:
    """A kernel that refuses suites whose names begin so."""

    def answer(wish: Wish) -> Answer:
        answer = Answer()
        for suite in wish.suites:
            refused = (said for name, said in refusals.items() if suite.startswith(name))
            answer.suites[key_of(suite, 4)] = next(refused, None)
        return answer

    monkeypatch.setattr(kernel, "ask", answer)


def test_the_folder_of_who_asks_is_not_searched_for_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may stand in anybody's."""
    (tmp_path / "gdoi_plugin.py").write_text("open('ran', 'w')")
    monkeypatch.chdir(tmp_path)
    with Namespace() as fresh, fresh.entered():
        assert ask(Wish((), ())).problem == ""
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("echo first >&2; echo what it was >&2; exit 3", "what it was"),
        ("exit 3", "it ended with 3"),
        ("exec sleep 60", "no answer in 0.2 s"),
    ],
)
def test_the_process_that_tries_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, said: str
) -> None:
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\n{program}\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    if "sleep" in program:
        monkeypatch.setattr(probing, "LIMIT", 0.2)
    found = list(check_kernel(None, None))
    assert all(one.found.endswith(f"not tried, {said}") for one in found)
    assert {one.mend for one in found} == {"# a container? run it on the host"}


def test_in_a_namespace_of_its_own() -> None:
    """Of this host nothing changes, whatever its kernel can do."""
    with Namespace() as fresh, fresh.entered():
        answer = ask(Wish(["aes256-sha256"], (4,)))
        assert (answer.problem, list(answer.suites)) == ("", ["aes256-sha256/4"])
        assert ip("xfrm state") == ip("xfrm policy") == ""


def test_somebody_without_rights_tries_it_in_a_user_namespace() -> None:
    """So what is said of ESP does not depend on who asks."""
    wish = Wish(["aes256-sha256"], (4,))
    mine = ask(wish).suites["aes256-sha256/4"]
    theirs = as_nobody(lambda: ask(wish))
    assert "problem=''" in theirs, theirs
    assert (mine is None) == ("aes256-sha256/4': None" in theirs), theirs


def test_suites_have_names_that_are_known() -> None:
    assert set(USUAL_SUITES) <= set(TEK_SUITES)


def test_everything_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch)
    assert verdicts(check_kernel(None, None)) == {"ESP over IPv4": OK, "AH over IPv4": OK}


def test_no_esp(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, aes=NO_ESP)
    found = the(check_kernel(None, None), "ESP over IPv4")
    assert (found.verdict, "has no ESP for IPv4" in found.found) == (FAIL, True)
    assert "esp4" in found.mend


def test_no_ah(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, sha=NO_ESP)
    found = the(check_kernel(None, None), "AH over IPv4")
    assert (found.verdict, "ah4" in found.mend) == (WARN, True)


def test_one_algorithm_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, aes256gcm16=NO_GCM)
    found = list(check_kernel(None, None))
    assert the(found, "ESP over IPv4, aes256gcm16").verdict is WARN
    assert "aes128gcm16" in next(one.found for one in found if one.test == "ESP over IPv4")


def test_no_netlink_for_ipsec(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, aes=NO_XFRM)
    found = the(check_kernel(None, None), "ESP over IPv4")
    assert (found.verdict, "xfrm_user" in found.mend) == (FAIL, True)


@pytest.mark.parametrize(
    ("user", "mend"), [(0, "# a container? run it on the host"), (1000, "sudo gdoictl check")]
)
def test_nothing_can_be_tried(monkeypatch: pytest.MonkeyPatch, user: int, mend: str) -> None:
    monkeypatch.setattr("os.geteuid", lambda: user)
    monkeypatch.setattr(kernel, "ask", lambda _: Answer("no network namespace of its own: EPERM"))
    found = list(check_kernel(None, None))
    assert verdicts(found) == {"module xfrm_user": WARN, "module esp4": WARN}
    assert {one.mend for one in found} == {mend}


def test_a_module_that_this_kernel_does_not_come_with() -> None:
    said = kernel._load("no-such-module")
    assert said.startswith("apt-get install linux-image-")
    assert said.endswith("this kernel comes without no-such-module")

"""``deploy/lab demo`` from end to end in User Mode Linux, and Wireshark's opinion of its packets.

::

    gcks ----+---- gm1  gm2  gm3        gm2's kernel refuses an SA once
             |
          tcpdump --> bridge.pcap --> tshark (Debian's)
"""

import copy
import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gdoi_lab.checkout import CHECKOUT
from gdoi_lab.clear import count_capture
from gdoi_lab.demo import judge
from gdoi_lab.scenario import Options

pytestmark = pytest.mark.lab

MEMBERS, REKEYS = 3, 5
# ISAKMP payload types as tshark prints them, RFC 2408 section 3.1 and RFC 6407 section 5.
# What they begin with: vendor IDs, NAT-D or an INITIAL-CONTACT may follow.
SA_ONLY, KE_NONCE, ID_HASH = "1,2,", "4,10", "5,8"
PULL = {"8,10,5": 1, "8,10,1": 2, "8": 3, "8,18,17": 4}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "out"


@pytest.fixture(scope="module")
def result(out: Path) -> dict[str, Any]:
    """One run of the command a newcomer types, with --json."""
    command = [str(CHECKOUT / "deploy" / "lab"), "demo", "--json", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1500)
    assert done.returncode == 0, done.stderr + done.stdout
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_every_check_passes(result: dict[str, Any]) -> None:
    assert result["passed"] is True
    assert [check["name"] for check in result["checks"] if not check["passed"]] == []
    assert len(result["members"]) == MEMBERS
    assert len(result["rekeys"]) == REKEYS


def test_traffic_went_through_every_rekey(result: dict[str, Any]) -> None:
    for member in result["members"]:
        assert member["sent"] > 1000
        assert member["lost"] == 0
        assert member["clear"] == 0
        others = sum(m["sent"] for m in result["members"] if m is not member)
        assert member["received"] == others


def test_the_refusal_was_the_kernels_own(result: dict[str, Any]) -> None:
    refusing = result["refusing"]
    refused = [r for r in result["rekeys"] if r["refused"]]
    assert len(refused) == 1
    assert "EEXIST" in refused[0]["refused"][refusing]
    assert refusing not in refused[0]["acknowledged"]
    assert refused[0]["missing"] == [refusing]


def test_key_server_said_missing_not_before_ten_seconds(out: Path, result: dict[str, Any]) -> None:
    """RFC 8263 section 6: "until it has waited at least 10 seconds"."""
    events = [json.loads(line) for line in (out / "gcks.log").read_text().splitlines()]
    missing = [e for e in events if e["event"] == "ack-missing"]
    assert [e["member"] for e in missing] == [
        m["address"] for m in result["members"] if m["member"] == result["refusing"]
    ]
    sent = next(
        e for e in events if e["event"] == "rekey-sent" and e["epoch"] == missing[0]["epoch"]
    )
    waited = _seconds(missing[0]["time"]) - _seconds(sent["time"])
    assert 10.0 <= waited < 60.0


def test_out_folder_holds_what_was_promised(out: Path, result: dict[str, Any]) -> None:
    assert result["kernel"] in ("host", "uml")
    for member in result["members"]:
        name = member["member"]
        assert "proto esp" in (out / f"{name}.xfrm-state").read_text()
        policy = (out / f"{name}.xfrm-policy").read_text()
        assert "dir out" in policy
        assert "dir in" in policy
        assert (out / f"{name}.log").stat().st_size > 0
    counts = count_capture(out / "bridge.pcap", {"239.192.1.1"})
    assert (
        sum(counts.esp.values())
        == result["esp_packets"]
        == sum(member["sent"] for member in result["members"])
    )


def test_no_key_in_any_log(out: Path, result: dict[str, Any]) -> None:
    """The keys the lab knows: those of the key log and of the kernels' dumps."""
    assert result["passed"]
    keys = {line.split(",")[1] for line in (out / "ikev1_decryption_table").read_text().split()}
    for dump in out.glob("*.xfrm-state"):
        keys |= {w[2:] for w in dump.read_text().split() if w.startswith("0x") and len(w) >= 34}
    assert len(keys) > MEMBERS
    logs = "".join(log.read_text() for log in out.glob("*.log"))
    assert [key[:6] + "..." for key in keys if key in logs.lower()] == []


# -- tshark --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dissect(out: Path, result: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs tshark with the key table as its profile."""
    assert result["passed"]
    profile = tmp_path_factory.mktemp("wireshark")
    table = (out / "ikev1_decryption_table").read_text()
    (profile / "ikev1_decryption_table").write_text(table)

    def run(capture: str, display_filter: str, *fields: str) -> Iterator[list[str]]:
        command = ["tshark", "-r", str(out / capture), "-d", "udp.port==848,isakmp"]
        command += ["-Y", display_filter, "-T", "fields"]
        command += [word for field in fields for word in ("-e", field)]
        env = {"WIRESHARK_CONFIG_DIR": str(profile), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
        return (line.split("\t") for line in done.stdout.splitlines())

    return run


@pytest.mark.parametrize("capture", ["bridge.pcap", "bridge-wireshark.pcap"])
def test_tshark_finds_no_malformed_packet(dissect: Any, capture: str) -> None:
    all_848 = list(dissect(capture, "udp.port==848", "frame.number", "isakmp.version"))
    assert len(all_848) > 10 * (MEMBERS + 1)
    assert all(version for _, version in all_848)  # every one of them is ISAKMP
    assert list(dissect(capture, "_ws.malformed", "frame.number")) == []


def test_tshark_decrypts_phase_1_and_pull(dissect: Any) -> None:
    """Main mode 5 and 6 show ID and HASH, and every registration the four messages of a PULL."""
    shown = Counter(
        (int(exchange), payloads)
        for exchange, payloads in dissect(
            "bridge-wireshark.pcap",
            "isakmp.exchangetype==2 || isakmp.exchangetype==32",
            "isakmp.exchangetype",
            "isakmp.typepayload",
        )
    )
    registrations = MEMBERS + 1  # one of them registers again, under the phase-1 SA it has
    main_mode = Counter({p: n for (exchange, p), n in shown.items() if exchange == 2})
    for begin in (SA_ONLY, KE_NONCE, ID_HASH):
        assert sum(n for p, n in main_mode.items() if p.startswith(begin)) == 2 * MEMBERS
    pulls = {p: n for (exchange, p), n in shown.items() if exchange == 32}
    assert pulls == dict.fromkeys(PULL, registrations)


def test_tshark_reads_push_and_ack(dissect: Any, result: dict[str, Any]) -> None:
    pushes = list(
        dissect(
            "bridge.pcap",
            "isakmp.exchangetype==33",
            "isakmp.flag_e",
            "isakmp.messageid",
            "udp.dstport",
        )
    )
    assert pushes == [["1", "0x00000000", "848"]] * REKEYS
    acks = Counter(
        (flags, message_id, payloads)
        for flags, message_id, payloads in dissect(
            "bridge.pcap",
            "isakmp.exchangetype==35",
            "isakmp.flags",
            "isakmp.messageid",
            "isakmp.typepayload",
        )
    )
    acknowledged = sum(len(r["acknowledged"]) for r in result["rekeys"])
    assert acks == {("0x00", "0x00000000", "8,18,5"): acknowledged}


# -- the judge can say no ------------------------------------------------------------------------


def _spoil(result: dict[str, Any], what: str) -> None:
    refusing = result["refusing"]
    refused = next(r for r in result["rekeys"] if r["refused"])
    match what:
        case "lost":
            result["members"][0]["lost"] = 1
        case "clear":
            result["members"][1]["clear"] = 1
        case "silent":
            result["rekeys"][0]["acknowledged"].pop()
        case "acknowledged":
            refused["acknowledged"].append(refusing)
        case "not reported":
            refused["missing"] = []
        case "not recovered":
            result["rekeys"][2]["acknowledged"].remove(refusing)
        case "unregistered":
            result["members"][2]["registrations"] = 0
        case "crashed":
            result["exit_statuses"]["gm1"] = 1
        case "no new KEK":
            for rekey in result["rekeys"]:
                rekey["new_kek"] = False
        case "no traffic":
            result["esp_packets"] = 0


@pytest.mark.parametrize(
    "what",
    [
        *("lost", "clear", "silent", "acknowledged", "not reported", "not recovered"),
        *("unregistered", "crashed", "no new KEK", "no traffic"),
    ],
)
def test_demo_fails_where_something_went_wrong(result: dict[str, Any], what: str) -> None:
    options = Options(MEMBERS, REKEYS, 200.0, "")
    spoilt = copy.deepcopy(result)
    assert all(check.passed for check in judge(spoilt, options))
    _spoil(spoilt, what)
    assert not all(check.passed for check in judge(spoilt, options))


def _seconds(time: str) -> float:
    hours, minutes, seconds = time.partition("T")[2].rstrip("Z").split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)

"""The capture's reader and the accounts, on made-up bytes: no kernel needed."""

import struct
from array import array
from ipaddress import ip_address
from pathlib import Path

import pytest
from gdoi_lab.clear import EspFlow, count_capture
from gdoi_lab.errors import LabError
from gdoi_lab.fpu import host_register_size
from gdoi_lab.traffic import Gap, Received, Report, deliveries

GROUP4, GROUP6 = "239.192.1.1", "ff15::1:1"
HEADER = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 1)


def record(frame: bytes, cut: int = 0) -> bytes:
    return struct.pack("<4I", 0, 0, len(frame) - cut, len(frame)) + frame[: len(frame) - cut]


def ip4(source: str, destination: str, protocol: int, payload: bytes) -> bytes:
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 8, protocol, 0)
    addresses = ip_address(source).packed + ip_address(destination).packed
    return b"\xff" * 12 + b"\x08\x00" + header + addresses + payload


def ip6(source: str, destination: str, protocol: int, payload: bytes) -> bytes:
    header = struct.pack("!IHBB", 6 << 28, len(payload), protocol, 8)
    addresses = ip_address(source).packed + ip_address(destination).packed
    return b"\xff" * 12 + b"\x86\xdd" + header + addresses + payload


def write(path: Path, *frames: bytes) -> Path:
    path.write_bytes(HEADER + b"".join(map(record, frames)))
    return path


def test_clear_and_esp_are_told_apart(tmp_path: Path) -> None:
    esp = (0x1234).to_bytes(4, "big") + b"\0" * 20
    hop_by_hop = bytes([17, 0]) + b"\0" * 6
    fragment = bytes([17, 0]) + b"\0" * 6
    pcap = write(
        tmp_path / "x.pcap",
        ip4("10.66.0.1", GROUP4, 17, b"\0" * 8),
        ip4("10.66.0.1", GROUP4, 50, esp),
        ip4("10.66.0.1", GROUP4, 50, esp),
        ip4("10.66.0.1", GROUP4, 2, b"\0" * 8),
        ip4("10.66.0.1", "239.192.1.2", 17, b"\0" * 8),
        ip6("fd66::1", GROUP6, 0, hop_by_hop + b"\0" * 8),
        ip6("fd66::1", GROUP6, 44, fragment + b"\0" * 8),
        ip6("fd66::2", GROUP6, 50, esp),
        b"\xff" * 12 + b"\x88\xb5" + b"\0" * 46,
    )
    counts = count_capture(pcap, [GROUP4, GROUP6])
    assert counts.packets == 9
    assert counts.clear == {"10.66.0.1": 1, "fd66::1": 2}
    assert counts.esp == {
        EspFlow("10.66.0.1", GROUP4, 0x1234): 2,
        EspFlow("fd66::2", GROUP6, 0x1234): 1,
    }
    assert counts.other == {("10.66.0.1", 2): 1}


def test_neighbour_discovery_is_counted_by_who_says_what(tmp_path: Path) -> None:
    """To whomever; an echo request and IPv4's protocol 58 are something else."""
    solicitation, advertisement, echo = (bytes([kind]) + b"\0" * 23 for kind in (135, 136, 128))
    pcap = write(
        tmp_path / "x.pcap",
        ip6("fd66::1", "ff02::1:ff00:2", 58, solicitation),
        ip6("fd66::2", "fd66::1", 58, advertisement),
        ip6("fd66::2", "fd66::1", 58, advertisement),
        ip6("fd66::1", GROUP6, 58, echo),
        ip6("fd66::1", GROUP6, 58, b""),
        ip4("10.66.0.1", "10.66.0.2", 58, solicitation),
    )
    counts = count_capture(pcap, [GROUP6])
    assert counts.neighbours == {("fd66::1", 135): 1, ("fd66::2", 136): 2}
    assert counts.other == {("fd66::1", 58): 2}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not a pcap file"),
        (b"\x0a\x0d\x0d\x0a" + HEADER[4:], "is not a pcap file"),
        (HEADER[:20] + struct.pack("<I", 113), "not a capture of Ethernet"),
        (HEADER + b"\0" * 10, "ends in the middle of a record"),
        (HEADER + record(b"\0" * 60)[:-1], "ends in the middle of a packet"),
        (HEADER + record(b"\0" * 60, cut=1), "cut to 59"),
    ],
)
def test_a_capture_that_is_not_whole_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "x.pcap").write_bytes(content)
    with pytest.raises(LabError, match=said):
        count_capture(tmp_path / "x.pcap", [GROUP4])


def report(number: int, sent: int, received: dict[int, Received]) -> Report:
    return Report(number, f"10.66.0.{number}", GROUP4, sent, [], [], received, 0, 0)


def test_losses_at_either_end_are_gaps_too() -> None:
    got = Received(6, 1, 0, 2, 8, 20.0, 80.0, 0.1, [Gap(5, 5, 40.0, 60.0)])
    one, two = deliveries({"a": report(1, 10, {}), "b": report(2, 0, {1: got})})
    assert (one.lost, one.duplicates) == (4, 1)
    assert one.gaps == [Gap(0, 1, None, 20.0), Gap(5, 5, 40.0, 60.0), Gap(9, 9, 80.0, None)]
    assert sum(gap.count for gap in one.gaps) == one.lost
    assert (two.sent, two.lost, two.gaps) == (0, 0, [])


def test_nothing_received_is_one_gap() -> None:
    one, _ = deliveries({"a": report(1, 10, {}), "b": report(2, 0, {})})
    assert (one.lost, one.gaps) == (10, [Gap(0, 9, None, None)])


def test_an_inbox_counts_duplicates_and_reordering() -> None:
    from gdoi_lab.talkers import _Inbox

    inbox = _Inbox()
    inbox.numbers = array("I", [0, 1, 3, 2, 2, 6])
    inbox.times = array("d", [0.0, 1.0, 3.0, 2.0, 2.5, 6.0])
    account = inbox.account()
    assert (account.distinct, account.duplicates, account.reordered) == (5, 1, 1)
    assert account.gaps == [Gap(4, 5, 3.0, 6.0)]


def test_the_register_size_is_plausible() -> None:
    size = host_register_size()
    assert size == 0 or 512 <= size < 65536

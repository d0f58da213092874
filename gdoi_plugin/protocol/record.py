"""Policy as plain JSON values, for the stores: what a crash must not lose."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from typing import Any

from ..crypto.lkh import Node
from ..crypto.secret import Secret
from ..crypto.signature import RSA_MAX_BITS, Scheme
from ..wire.oid import Oid
from ..wire.registry import (
    AddressPreservation,
    EncapsulationMode,
    IecAuthentication,
    IecConfidentiality,
    SaDirection,
    SigAlgorithm,
    SigHash,
)
from .actions import IPAddress
from .iec_tek import IecSuite, IecTek
from .policy import TEK_SUITES, AnyTek, Flow, Kek, Tek
from .sender_ids import SenderIds

Record = dict[str, Any]


def flow_record(flow: Flow) -> Record:
    return {
        "source": None if flow.source is None else str(flow.source),
        "destination": str(flow.destination),
        "protocol": flow.protocol,
        "source_port": flow.source_port,
        "destination_port": flow.destination_port,
    }


def read_flow(record: Mapping[str, Any]) -> Flow:
    """Raises KeyError, ValueError or TypeError for a record that is not one."""
    source = record["source"]
    return Flow(
        None if source is None else ip_network(expect_text(source)),
        ip_address(expect_text(record["destination"])),
        record["protocol"],
        record["source_port"],
        record["destination_port"],
    )


def tek_record(tek: Tek) -> Record:
    return {
        "spi": tek.spi.hex(),
        **flow_record(tek.flow),
        "suite": tek.suite.keyword,
        "encryption_key": tek.encryption_key.reveal().hex(),
        "integrity_key": None if tek.integrity_key is None else tek.integrity_key.reveal().hex(),
        "lifetime": tek.lifetime,
        "lifetime_kilobytes": tek.lifetime_kilobytes,
        "mode": int(tek.mode),
        "direction": int(tek.direction),
        "preservation": int(tek.preservation),
        "esn": tek.esn,
    }


def read_tek(record: Mapping[str, Any]) -> Tek:
    """Raises KeyError, ValueError or TypeError for a record that is not one."""
    integrity = record["integrity_key"]
    return Tek(
        spi=bytes.fromhex(record["spi"]),
        flow=read_flow(record),
        suite=TEK_SUITES[record["suite"]],
        encryption_key=Secret(bytes.fromhex(record["encryption_key"])),
        integrity_key=None if integrity is None else Secret(bytes.fromhex(integrity)),
        lifetime=record["lifetime"],
        mode=EncapsulationMode(record["mode"]),
        direction=SaDirection(record["direction"]),
        lifetime_kilobytes=record["lifetime_kilobytes"],
        preservation=AddressPreservation(
            record.get("preservation", AddressPreservation.SOURCE_AND_DESTINATION)
        ),
        esn=bool(record.get("esn", False)),
    )


def iec_record(tek: IecTek) -> Record:
    return {
        "spi": tek.spi.hex(),
        "selector": [tek.selector.oid.hex(), tek.selector.payload.hex()],
        "auth": int(tek.suite.authentication),
        "conf": int(tek.suite.confidentiality),
        "encryption_key": tek.encryption_key.reveal().hex(),
        "integrity_key": None if tek.integrity_key is None else tek.integrity_key.reveal().hex(),
        "lifetime": tek.lifetime,
        "sa_atd": tek.sa_atd,
        "sa_kda": tek.sa_kda,
    }


def read_iec(record: Mapping[str, Any]) -> IecTek:
    """Raises KeyError, ValueError or TypeError for a record that is not one."""
    integrity = record["integrity_key"]
    oid, payload = record["selector"]
    return IecTek(
        spi=bytes.fromhex(record["spi"]),
        selector=Oid(bytes.fromhex(oid), bytes.fromhex(payload)),
        suite=IecSuite(IecAuthentication(record["auth"]), IecConfidentiality(record["conf"])),
        encryption_key=Secret(bytes.fromhex(record["encryption_key"])),
        integrity_key=None if integrity is None else Secret(bytes.fromhex(integrity)),
        lifetime=record["lifetime"],
        sa_atd=record["sa_atd"],
        sa_kda=record["sa_kda"],
    )


def any_tek_record(tek: AnyTek) -> Record:
    return iec_record(tek) if isinstance(tek, IecTek) else tek_record(tek)


def read_any_tek(record: Mapping[str, Any]) -> AnyTek:
    """Raises KeyError, ValueError or TypeError for a record that is not one."""
    return read_iec(record) if "selector" in record else read_tek(record)


def kek_record(kek: Kek) -> Record:
    return {
        "spi": kek.spi.hex(),
        "iv": kek.iv.hex(),
        "key": kek.key.reveal().hex(),
        "scheme": [kek.scheme.algorithm, kek.scheme.hash, kek.scheme.key_length],
        "public": kek.public_der.hex(),
        "lifetime": kek.lifetime,
        "destination": None if kek.destination is None else str(kek.destination),
        "source": None if kek.source is None else str(kek.source),
        "port": kek.port,
        "ack_type": kek.ack_type,
        "path": [[node.lkh_id, node.handle, node.material.hex()] for node in kek.path],
    }


def read_kek(record: Mapping[str, Any]) -> Kek:
    """Raises KeyError, ValueError or TypeError for a record that is not one."""
    algorithm, digest, length = record["scheme"]
    length = expect_number(length, RSA_MAX_BITS)
    return Kek(
        spi=bytes.fromhex(record["spi"]),
        iv=bytes.fromhex(record["iv"]),
        key=Secret(bytes.fromhex(record["key"])),
        scheme=Scheme(SigAlgorithm(algorithm), SigHash(digest), length),
        public_der=bytes.fromhex(record["public"]),
        lifetime=record["lifetime"],
        destination=_address(record["destination"]),
        source=_address(record["source"]),
        port=expect_number(record["port"], 0xFFFF),
        ack_type=record["ack_type"],
        path=tuple(
            Node.of(lkh_id, handle, bytes.fromhex(material))
            for lkh_id, handle, material in record.get("path", ())
        ),
    )


def sids_record(sids: SenderIds | None) -> Record | None:
    return None if sids is None else {"bits": sids.bits, "values": list(sids.values)}


def read_sids(record: Mapping[str, Any] | None) -> SenderIds | None:
    """Raises KeyError, ValueError or TypeError for a record that is not one."""
    if record is None:
        return None
    return SenderIds(int(record["bits"]), tuple(int(value) for value in record["values"]))


def _address(value: object) -> IPAddress | None:
    return None if value is None else ip_address(expect_text(value))


def expect_number(value: object, most: int) -> int:
    """Raises ValueError for anything but an integer from 0 to ``most``."""
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"a number up to {most} is wanted, not {value!r:.20}")
    return value


def expect_text(value: object) -> str:
    """``ip_address`` would take a number, and a truth value for one."""
    if not isinstance(value, str):
        raise TypeError(f"a text is wanted, not {type(value).__name__}")
    return value

"""A certification authority for one lab: every host a certificate with its address."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID


@dataclass(frozen=True, slots=True)
class Authority:
    """`folder` gets ca.pem, and NAME.pem and NAME.key of everybody who is issued a certificate."""

    folder: Path
    key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1()), repr=False
    )

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        builder = self._builder("lab", self.key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(True, 0), critical=True)
        self._write("ca.pem", builder)

    def issue(self, name: str, address: str) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))])
        builder = self._builder(name, key.public_key()).add_extension(names, critical=False)
        self._write(f"{name}.pem", builder)
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        path = self.folder / f"{name}.key"
        path.touch(0o600)
        path.write_bytes(pem)

    def settings(self, name: str) -> str:
        """What stands in NAME's configuration."""
        return (
            f'certificate = "{self.folder}/{name}.pem"\nprivate_key = "{self.folder}/{name}.key"\n'
            f'cacerts = ["{self.folder}/ca.pem"]\n'
        )

    @staticmethod
    def _builder(name: str, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(_name("lab"))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=7))
        )

    def _write(self, file: str, builder: x509.CertificateBuilder) -> None:
        certificate = builder.sign(self.key, SHA256())
        (self.folder / file).write_bytes(certificate.public_bytes(Encoding.PEM))


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])

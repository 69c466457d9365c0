"""The local certificate authority: one private CA and a short-lived leaf for each workload."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from strandline_gateway.topology import spiffe_id

AUTHORITY_LIFE = timedelta(days=3650)
LEAF_LIFE = timedelta(days=30)
# Certificates begin a little in the past, so that a clock that is slightly behind accepts them.
SKEW = timedelta(minutes=5)


def ensure_certificates(folder: Path, workloads: Sequence[str], trust_domain: str) -> None:
    """Make the authority and a certificate for each workload below *folder*; keep those that are still good.

    Writes ``authority/{cert,key}.pem`` and ``<workload>/{cert,key,ca}.pem``, keys with mode 0600. A leaf is renewed
    when less than a third of its life is left, when its identity changed, or when another authority signed it.
    Processes read certificates at their start, so call this before starting them.
    """
    authority, authority_key = ensure_authority(folder / "authority", trust_domain)
    for workload in workloads:
        home = folder / workload
        if not is_good(home, authority, spiffe_id(trust_domain, workload)):
            issue(home, workload, trust_domain, authority, authority_key)


def ensure_authority(home: Path, trust_domain: str) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Load the CA from *home*, or make it there."""
    if (home / "cert.pem").exists():
        key = serialization.load_pem_private_key((home / "key.pem").read_bytes(), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError(f"{home / 'key.pem'} is not an EC key")
        return x509.load_pem_x509_certificate((home / "cert.pem").read_bytes()), key
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{trust_domain} local authority")])
    certificate = (
        builder(name, name, key.public_key(), AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    write_key(home / "key.pem", key)
    write(home / "cert.pem", certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    return certificate, key


def is_good(home: Path, authority: x509.Certificate, identity: str) -> bool:
    """Whether *home* is complete, its leaf signed by *authority* for *identity* and valid for long enough."""
    try:
        leaf = x509.load_pem_x509_certificate((home / "cert.pem").read_bytes())
        key = serialization.load_pem_private_key((home / "key.pem").read_bytes(), password=None)
        trusted = x509.load_pem_x509_certificate((home / "ca.pem").read_bytes())
        leaf.verify_directly_issued_by(authority)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, InvalidSignature, x509.ExtensionNotFound):
        return False
    life = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    left = leaf.not_valid_after_utc - datetime.now(UTC)
    return (
        left > life / 3
        and trusted == authority
        # A crash between the two writes of `issue` leaves a new key beside the old leaf.
        and key.public_key() == leaf.public_key()
        and names.get_values_for_type(x509.UniformResourceIdentifier) == [identity]
    )


def issue(
    home: Path, workload: str, trust_domain: str, authority: x509.Certificate, authority_key: ec.EllipticCurvePrivateKey
) -> None:
    """Write a new key and leaf for *workload* into *home*."""
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(spiffe_id(trust_domain, workload))]
    if workload == "nats":  # its clients check a host name, not a SPIFFE id
        names += [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = (
        builder(x509.Name([]), authority.subject, key.public_key(), LEAF_LIFE)
        # Critical, because the subject is empty (RFC 5280, 4.2.1.6).
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    write_key(home / "key.pem", key)
    write(home / "cert.pem", leaf.public_bytes(serialization.Encoding.PEM), 0o644)
    write(home / "ca.pem", authority.public_bytes(serialization.Encoding.PEM), 0o644)


def builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, life: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write(path, pem, 0o600)


def write(path: Path, content: bytes, mode: int) -> None:
    """Replace *path* in one step; it never exists with a wider mode than *mode*."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
    temporary.replace(path)

"""The local authority: what it writes, and when it writes again."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from strandline_gateway import certificates
from strandline_gateway.certificates import ensure_certificates

DOMAIN = "strandline.local"


def leaf(folder: Path, workload: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / workload / "cert.pem").read_bytes())


def names(certificate: x509.Certificate) -> x509.SubjectAlternativeName:
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def test_each_workload_gets_its_spiffe_id_from_one_authority(tmp_path: Path) -> None:
    ensure_certificates(tmp_path, ["edge", "user"], DOMAIN)
    authority = x509.load_pem_x509_certificate((tmp_path / "authority" / "cert.pem").read_bytes())
    for workload in ("edge", "user"):
        certificate = leaf(tmp_path, workload)
        certificate.verify_directly_issued_by(authority)
        assert names(certificate).get_values_for_type(x509.UniformResourceIdentifier) == [
            f"spiffe://{DOMAIN}/ns/default/sa/{workload}"
        ]
        assert (tmp_path / workload / "ca.pem").read_bytes() == (tmp_path / "authority" / "cert.pem").read_bytes()


def test_the_bus_is_known_by_host_names_too(tmp_path: Path) -> None:
    ensure_certificates(tmp_path, ["nats"], DOMAIN)
    found = names(leaf(tmp_path, "nats"))
    assert found.get_values_for_type(x509.DNSName) == ["localhost"]
    assert found.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("127.0.0.1")]


def test_keys_and_folders_are_for_the_owner_alone(tmp_path: Path) -> None:
    ensure_certificates(tmp_path, ["edge"], DOMAIN)
    for path in tmp_path.rglob("*"):
        if path.is_dir():
            assert path.stat().st_mode & 0o777 == 0o700
        if path.name == "key.pem":
            assert path.stat().st_mode & 0o777 == 0o600


def test_good_certificates_are_kept(tmp_path: Path) -> None:
    ensure_certificates(tmp_path, ["edge"], DOMAIN)
    before = leaf(tmp_path, "edge")
    ensure_certificates(tmp_path, ["edge", "user"], DOMAIN)
    assert leaf(tmp_path, "edge") == before


@pytest.mark.parametrize(("age_days", "renewed"), [(19, False), (21, True), (40, True)])
def test_a_leaf_is_renewed_in_the_last_third_of_its_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age_days: int, renewed: bool
) -> None:
    ensure_certificates(tmp_path, ["edge"], DOMAIN)
    before = leaf(tmp_path, "edge")
    monkeypatch.setattr(certificates, "datetime", clock_at(datetime.now(UTC) + timedelta(days=age_days)))
    ensure_certificates(tmp_path, ["edge"], DOMAIN)
    assert (leaf(tmp_path, "edge") != before) == renewed


@pytest.mark.parametrize("file", ["cert.pem", "key.pem", "ca.pem"])
@pytest.mark.parametrize("content", [None, "", "of another workload"])
def test_a_folder_that_does_not_fit_together_is_written_again(tmp_path: Path, file: str, content: str | None) -> None:
    ensure_certificates(tmp_path, ["edge", "user"], DOMAIN)
    ensure_certificates(tmp_path / "other", ["edge"], DOMAIN)
    damaged = tmp_path / "edge" / file
    match content:
        case None:
            damaged.unlink()
        case "":
            damaged.write_text("")
        case _:
            damaged.write_bytes((tmp_path / "other" / "edge" / file).read_bytes())
    before = (tmp_path / "edge" / "cert.pem").read_bytes() if file != "cert.pem" else b""
    ensure_certificates(tmp_path, ["edge", "user"], DOMAIN)
    assert (tmp_path / "edge" / "cert.pem").read_bytes() != before
    authority = x509.load_pem_x509_certificate((tmp_path / "authority" / "cert.pem").read_bytes())
    leaf(tmp_path, "edge").verify_directly_issued_by(authority)


def test_another_trust_domain_needs_other_leaves(tmp_path: Path) -> None:
    ensure_certificates(tmp_path, ["edge"], DOMAIN)
    ensure_certificates(tmp_path, ["edge"], "other.local")
    assert names(leaf(tmp_path, "edge")).get_values_for_type(x509.UniformResourceIdentifier) == [
        "spiffe://other.local/ns/default/sa/edge"
    ]


def clock_at(moment: datetime) -> type[datetime]:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]  # one zone is all that is asked for
            return moment

    return Clock

"""Which key signs, which are published, and which are refused."""

from __future__ import annotations

import json
import time
from base64 import urlsafe_b64decode
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from joserfc.jwk import OKPKey

from services.runtime.tokens import TokenVerifier
from services.user.signing import TokenSigner

ISSUER = "https://strandline.local"


def write_key(path: Path, key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey | None = None) -> Path:
    key = key or Ed25519PrivateKey.generate()
    path.touch(mode=0o600)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path


async def test_the_last_key_not_named_next_signs_and_all_verify(tmp_path: Path) -> None:
    for name in ("001.pem", "002.pem", "next.pem"):
        write_key(tmp_path / name)
    signer = TokenSigner(tmp_path, ISSUER)
    token = signer.issue("u-1", "s-1", ["admin"], time.time())
    kid = json.loads(urlsafe_b64decode(token.split(".")[0] + "=="))["kid"]
    assert kid == OKPKey.import_key((tmp_path / "002.pem").read_bytes()).thumbprint()
    assert len({key.kid for key in signer.public_keys}) == 3
    (tmp_path / "003.pem").write_bytes((tmp_path / "next.pem").read_bytes())
    (tmp_path / "003.pem").chmod(0o600)
    (tmp_path / "next.pem").unlink()
    rotated = TokenSigner(tmp_path, ISSUER)
    verifier = TokenVerifier(ISSUER, rotated.key_set)
    assert (await verifier.verify(token)).is_administrator
    early = TokenVerifier(ISSUER, signer.key_set)  # who has not looked for new keys yet knows the next one already
    assert (await early.verify(rotated.issue("u-1", "s-1", [], time.time()))).user_id == "u-1"


def test_a_folder_without_a_key_that_may_sign_stops_the_start(tmp_path: Path) -> None:
    write_key(tmp_path / "next.pem")
    with pytest.raises(RuntimeError, match="no signing key"):
        TokenSigner(tmp_path, ISSUER)


def test_a_key_that_others_may_read_or_of_another_kind_stops_the_start(tmp_path: Path) -> None:
    path = write_key(tmp_path / "001.pem")
    path.chmod(0o644)
    with pytest.raises(RuntimeError, match="read by others"):
        TokenSigner(tmp_path, ISSUER)
    path.unlink()
    write_key(tmp_path / "001.pem", ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(RuntimeError, match="not an Ed25519 key"):
        TokenSigner(tmp_path, ISSUER)

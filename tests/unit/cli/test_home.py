"""The platform's folder: who holds it, what is in it, who may read it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from strandline_cli.credentials import ensure_secrets, ensure_signing_keys
from strandline_cli.home import AlreadyRunning, Home, Ports, State


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def test_one_supervisor_holds_a_home_and_the_next_is_told_its_pid(home: Home) -> None:
    with home.hold():
        assert home.holder() == os.getpid()
        with pytest.raises(AlreadyRunning) as raised, home.hold():
            pass
        assert raised.value.pid == os.getpid()
    assert home.holder() is None


def test_the_hold_ends_with_the_process_however_it_dies(home: Home) -> None:
    script = (
        "import os, sys; from pathlib import Path; from strandline_cli.home import Home\n"
        "with Home(Path(sys.argv[1])).hold(): os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(home.root)], check=False).returncode == -9
    with home.hold():
        pass


def test_what_was_saved_is_loaded(home: Home) -> None:
    home.prepare()
    state = State(pid=7, run="/run/x", ports=Ports(1, 2, 3, 4, 5, 6), pids={"nats": 8, "edge": None})
    home.save_state(state)
    assert home.load_state() == state


def test_secrets_are_readable_by_their_owner_alone_and_made_once(home: Home) -> None:
    home.prepare()
    ensure_secrets(home.secrets)
    ensure_signing_keys(home.secrets)
    files = {path: path.read_bytes() for path in home.secrets.rglob("*") if path.is_file()}
    assert {path.relative_to(home.secrets).as_posix() for path in files} >= {
        "admin/password",
        "postgres/superuser",
        "nats/stream",
        "user/signing/001.pem",
        "user/signing/next.pem",
        "user/kek/1.key",
        "entity/page_token.key",
        "stream/resume_token.key",
        "stream/ticket.key",
    }
    for path in home.secrets.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert all(len(content) == 32 for path, content in files.items() if path.suffix == ".key")
    ensure_secrets(home.secrets)
    ensure_signing_keys(home.secrets)
    assert {path: path.read_bytes() for path in files} == files


def test_erase_removes_what_the_platform_made_and_nothing_else(home: Home) -> None:
    home.prepare()
    ensure_secrets(home.secrets)
    (home.root / "mine.txt").write_text("not the platform's")
    home.erase()
    assert [path.name for path in home.root.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("uid", "chosen", "expected"),
    [(0, None, "/var/lib/strandline"), (1000, None, "/home/ada/.local/share/strandline"), (0, "/srv/x", "/srv/x")],
)
def test_the_home_is_where_the_user_says_or_where_its_kind_of_user_expects_it(
    monkeypatch: pytest.MonkeyPatch, uid: int, chosen: str | None, expected: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.delenv("STRANDLINE_HOME", raising=False)
    if chosen:
        monkeypatch.setenv("STRANDLINE_HOME", chosen)
    assert Home.from_environment().root == Path(expected)

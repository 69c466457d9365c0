"""`strandline up` and the commands around it, as somebody at a terminal meets them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from strandline_cli.api import Api, ApiError

from tests.e2e.local_platform import Platform, new_home, run_strandline, start, started

PROCESSES = (
    "postgres",
    "nats",
    "user",
    "entity",
    "stream",
    "user-sidecar",
    "entity-sidecar",
    "stream-sidecar",
    "edge",
)
NOTES = "/v1/namespaces/demo/types/note/entities"
pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def home() -> Iterator[Path]:
    with new_home() as folder:
        yield folder


def test_up_says_each_part_with_its_milliseconds_then_the_addresses_the_figures_and_that_it_is_for_development(
    platform: Platform,
) -> None:
    said = platform.output
    for step in ("preflight", "initdb", *PROCESSES, "mail", "smoke check"):
        assert re.search(rf"✓ {step} +\d+ ms", said), step
    assert re.search(r"REST +" + re.escape(platform.rest), said)
    assert re.search(r"gRPC +" + re.escape(platform.grpc), said)
    assert re.search(r"data +" + re.escape(str(platform.home)), said)
    assert re.search(r"logs +" + re.escape(str(platform.home / "logs")), said)
    assert re.search(r"started in +\d+\.\d s", said)
    assert "development only" in said
    assert "\x1b" not in said


def test_the_whole_stack_idles_in_at_most_500_megabytes(platform: Platform) -> None:
    match = re.search(r"memory +(\d+) MB", platform.output)
    assert match is not None
    assert int(match[1]) <= 500


def test_the_printed_commands_write_read_and_follow(platform: Platform) -> None:
    write, read, follow = re.findall(r"^  (curl .*)$", platform.output, re.MULTILINE)
    assert json.loads(shell(platform, write))["data"] == {"text": "hello"}
    assert "hello" in [entity["data"]["text"] for entity in json.loads(shell(platform, read))["entities"]]
    # The command ends when nobody takes what it prints next.
    first = json.loads(shell(platform, f"timeout 30 {follow} | head -n 1"))
    assert first["units"]["units"][0]["changes"][0]["entity"]["name"].endswith("/entities/hello")


def test_status_has_the_contracts_shape_and_every_part_answers(platform: Platform) -> None:
    answer = platform.run("status", "--json")
    assert answer.returncode == 0
    status = json.loads(answer.stdout)
    assert set(status) == {"rest", "grpc", "parts"}
    assert status["rest"] == f"http://{status['grpc']}"
    assert {part["name"]: part["state"] for part in status["parts"]} == dict.fromkeys((*PROCESSES, "mail"), "ready")
    assert all(set(part) == {"name", "state", "pid", "address"} for part in status["parts"])
    assert all(psutil.pid_exists(part["pid"]) for part in status["parts"])


def test_token_is_one_that_the_api_takes_and_needs_no_sign_in_each_time(platform: Platform) -> None:
    tokens = [platform.token() for _ in range(3)]
    assert len(set(tokens)) < 3, "of three at least two are the one that is kept for two minutes"
    token = tokens[-1]
    assert Api(platform.rest, token).call("GET", "/v1/users/me")["email"] == "admin@example.com"


def test_a_mail_of_the_platform_is_shown_by_mail(platform: Platform) -> None:
    account = {"email": "ada@example.com", "password": "correct horse battery", "givenName": "Ada", "familyName": "L"}
    Api(platform.rest).call("POST", "/v1/auth:register", account)
    deadline = time.monotonic() + 30
    while "ada@example.com" not in platform.run("mail", "--json").stdout:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_second_up_on_the_same_home_is_refused_with_the_pid_and_what_to_do(platform: Platform) -> None:
    second = platform.run("up")
    assert second.returncode == 1
    assert f"pid {platform.process.pid}" in second.stdout
    assert "try: strandline down" in second.stdout
    assert platform.run("status").returncode == 0


def test_reset_is_refused_while_the_platform_runs(platform: Platform) -> None:
    refused = platform.run("reset", "--yes")
    assert refused.returncode == 1
    assert "strandline down" in refused.stderr
    assert platform.run("status").returncode == 0


def test_logs_shows_a_part_and_names_those_that_there_are(platform: Platform) -> None:
    assert "database system is ready" in platform.run("logs", "postgres").stdout
    refused = platform.run("logs", "../secrets/admin/password")
    assert refused.returncode == 1
    assert "entity-sidecar" in refused.stderr


@pytest.mark.parametrize("part", PROCESSES)
def test_a_part_that_is_killed_is_started_again_and_the_platform_works_as_before(platform: Platform, part: str) -> None:
    before, said = platform.pid(part), f"{part} was ended by SIGKILL: starting it again"
    times = platform.output.count(said)  # others may have killed it, too
    platform.kill(part)
    deadline = time.monotonic() + 30
    while platform.output.count(said) == times:
        assert time.monotonic() < deadline, platform.output
        time.sleep(0.02)
    platform.wait_until_ready()
    assert platform.pid(part) != before
    write_note(platform, f"after the end of {part}")


def test_data_survives_a_restart_and_parts_drain_from_the_outside_in(home: Path) -> None:
    with started(home) as first:
        name = write_note(first, "kept")
        assert first.stop() == 0
    stopped = first.output[first.output.index("Draining") :]
    order = [stopped.index(f"✓ {part} ") for part in ("edge", "edge", "user-sidecar", "user", "nats", "postgres")]
    assert order == sorted(order)
    assert "killed" not in stopped
    assert {part["state"] for part in first.status()["parts"]} == {"stopped"}
    assert first.run("token").returncode == 1
    with started(home) as second:
        assert "initdb" not in second.output
        assert Api(second.rest, second.token()).call("GET", f"/v1/{name}")["data"]["text"] == "kept"
        assert second.run("down").stdout == "Stopped\n"
        assert second.process.wait(60) == 0
    assert run_strandline(home, "reset", "--yes").returncode == 0
    assert [path.name for path in home.iterdir()] == ["lock"]


def test_after_kill_9_of_the_supervisor_nothing_stays_alive_and_the_next_start_works(home: Path) -> None:
    with started(home) as killed:
        name = write_note(killed, "acknowledged")
        family = psutil.Process(killed.process.pid).children(recursive=True)
        assert len(family) > len(PROCESSES)
        os.kill(killed.process.pid, signal.SIGKILL)
        psutil.wait_procs(family, timeout=30)
        assert [process for process in family if is_alive(process)] == []
    with started(home) as next_one:
        assert Api(next_one.rest, next_one.token()).call("GET", f"/v1/{name}")["data"]["text"] == "acknowledged"
        os.kill(next_one.process.pid, signal.SIGKILL)
    with started(home):  # at once: it waits for what is left of the last one
        pass


def test_a_taken_port_is_replaced_and_that_is_said(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with started(home, "--port", str(port)) as platform:
            said = f"port {port} is taken: edge listens on {platform.grpc.rpartition(':')[2]}"
            assert said in platform.output
            assert not platform.grpc.endswith(f":{port}")


def test_a_part_that_cannot_start_shows_the_end_of_its_log_and_what_to_try_and_takes_the_rest_down(home: Path) -> None:
    with started(home):
        pass
    (home / "secrets" / "entity" / "page_token.key").chmod(0o644)
    with (home / "logs" / "entity.log").open("a") as log:
        log.write("of an earlier start\n")
    failed = start(home)
    assert failed.process.wait(120) == 1
    assert "of an earlier start" not in failed.output
    assert "✗ entity cannot start: it ended with exit code 1" in failed.output
    assert "can be read by others: chmod 600" in failed.output
    assert "try: strandline logs entity" in failed.output
    assert re.search(r"✓ postgres +\d+ ms  stopped", failed.output)
    shown = failed.output.split("✗", 1)[1].split("try:", 1)[0].splitlines()[1:]
    assert 0 < len([line for line in shown if line.startswith("    ")]) <= 20


def test_a_feed_that_is_open_at_ctrl_c_is_told_that_it_ends_and_where_to_resume(home: Path) -> None:
    with started(home) as platform:
        feed = Api(platform.rest, platform.token()).lines("/v1/namespaces/demo:watch?now=true")
        position = next(feed)["revision"]
        platform.process.send_signal(signal.SIGINT)
        last = list(feed)[-1]
        assert last["end"]["reason"] == "DRAINING"
        assert last["end"]["resumeAfterRevision"] == position


def test_a_second_ctrl_c_ends_everything_at_once(home: Path) -> None:
    with started(home) as platform:
        family = psutil.Process(platform.process.pid).children(recursive=True)
        platform.process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + 30
        while "once more to kill" not in platform.output:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        platform.process.send_signal(signal.SIGINT)
        assert platform.process.wait(30) == 0
        assert [process for process in family if is_alive(process)] == []


def write_note(platform: Platform, text: str) -> str:
    """The name of a new note; a part that just came back may need a moment."""
    api = Api(platform.rest, platform.token())
    deadline = time.monotonic() + 30
    while True:
        try:
            return str(api.call("POST", NOTES, {"data": {"text": text}})["name"])
        except ApiError as refusal:
            if refusal.status != 503 or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def shell(platform: Platform, command: str) -> str:
    """What a shell with `strandline` on its path prints."""
    environment = {**platform.environment, "no_proxy": "127.0.0.1"}
    finished = subprocess.run(
        ["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    return finished.stdout


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs; one that nobody has waited for yet does not."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

"""A tracking URI that can't be used is told in one sentence, quickly, with what to do."""

from __future__ import annotations

import base64
import http.server
import os
import signal
import socket
import sqlite3
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hgrnx.errors import UserError
from hgrnx.launch.cluster import free_port
from hgrnx.tracking import mlflow_store
from hgrnx.tracking.mlflow_store import init_store, serve, server_command
from hgrnx.tracking.store_check import check_store, is_loopback, shown, within

AWAY = "http://127.0.0.1:1"  # nothing listens there


@contextmanager
def server(status: int) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_a_server_that_answers_is_fine() -> None:
    with server(200) as uri:
        assert check_store(uri) is None
    with server(401) as uri:  # it wants credentials, which MLflow has
        assert check_store(uri) is None


def test_a_server_in_trouble_away_or_silent() -> None:
    with server(503) as uri:
        assert "it answered '503 Service Unavailable'" in (check_store(uri) or "")
    problem = check_store(AWAY)
    assert problem is not None and "Connection refused" in problem and "mlflow server" in problem
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        problem = check_store(f"http://me:secret@127.0.0.1:{silent.getsockname()[1]}", timeout=0.3)
        assert time.monotonic() - started < 3
    assert problem is not None and "no answer in 0.3 seconds" in problem and "secret" not in problem
    with pytest.raises(UserError, match="can't be reached"):
        init_store(AWAY)


@pytest.mark.parametrize("uri", ["/runs/mlruns", "file:///runs/mlruns"])
def test_the_old_folder_store(uri: str) -> None:
    assert "sqlite:////runs/mlruns/mlflow.db" in (check_store(uri) or "")


def test_a_relative_database() -> None:
    assert f"Use sqlite:///{Path.cwd() / 'mlflow.db'}" in (check_store("sqlite:///mlflow.db") or "")


def test_a_database_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    uri = f"sqlite:///{path}"
    assert check_store(uri) is None
    path.write_bytes(b"not a database" * 100)
    assert "file is not a database" in (check_store(uri) or "")
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("create table experiments (id int)")
    connection.close()
    with pytest.raises(UserError, match=r"not a whole MLflow database.*Move the file away"):
        init_store(uri)


def test_a_place_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    problem = check_store(f"sqlite:///{tmp_path / 'file' / 'deeper' / 'mlflow.db'}")
    assert f"{tmp_path / 'file'} is not a writable folder" in (problem or "")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_database(uri: str) -> None:
    Path(uri.removeprefix("sqlite:///")).chmod(0o400)
    assert "read-only" in (check_store(uri) or "")


def test_a_database_of_another_mlflow_version(uri: str) -> None:
    connection = sqlite3.connect(uri.removeprefix("sqlite:///"))
    connection.execute("update alembic_version set version_num = '451aebb31d03'")
    connection.commit()
    connection.close()
    with pytest.raises(UserError, match=r"another version of MLflow.*mlflow db upgrade"):
        init_store(uri)


def test_an_empty_file_counts_as_none_and_a_whole_one_is_left_alone(empty_database: Path) -> None:
    before = empty_database.stat().st_ino
    init_store(f"sqlite:///{empty_database}")
    assert empty_database.stat().st_ino == before


def test_passwords_are_not_shown() -> None:
    assert shown("postgresql://db/x?user=me&password=secret") == "postgresql://db/x?user=me&***"
    assert shown("https://me:secret@host:5000/x?y=1") == "https://host:5000/x?y=1"
    assert shown("sqlite:////a/b@c.db") == "sqlite:////a/b@c.db"


def test_within_passes_on_what_is_raised() -> None:
    assert within(5, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 // 0)
    with pytest.raises(TimeoutError):
        within(0.01, lambda: time.sleep(0.5))


def test_the_page_is_refused_where_it_makes_no_sense(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="open http://host:5000"):
        serve("http://me:secret@host:5000")
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match="in use"):
        serve(f"sqlite:///{tmp_path / 'mlflow.db'}", taken.getsockname()[1])


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "my.host"])
def test_the_page_is_not_opened_to_others_without_a_password(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_AUTH_ADMIN_PASSWORD", raising=False)
    with pytest.raises(UserError, match="MLFLOW_AUTH_ADMIN_PASSWORD"):
        serve(f"sqlite:///{tmp_path / 'mlflow.db'}", 5000, host)
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", "correct-horse-battery")
    monkeypatch.setattr(mlflow_store, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="Flask-WTF"):
        serve(f"sqlite:///{tmp_path / 'mlflow.db'}", 5000, host)
    assert not (tmp_path / "mlflow.db").exists()


def test_addresses_of_this_machine_alone() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "localhost.example.org", ""))


def test_the_servers_arguments_hold_no_password(tmp_path: Path) -> None:
    """Everyone on the machine can read them."""
    command, environment = server_command("postgresql://me:secret@db/mlflow", 5000, "0.0.0.0", tmp_path)
    assert "secret" not in " ".join(command) and "secret" in environment["MLFLOW_BACKEND_STORE_URI"]
    assert "secret" not in (tmp_path / "auth.ini").read_text()
    assert command[command.index("--app-name") + 1] == "basic-auth"
    assert "--app-name" not in server_command("sqlite:////x/mlflow.db", 5000, "127.0.0.1", None)[0]


@pytest.mark.slow
def test_beyond_loopback_the_page_wants_the_password(uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All of 127/8 is this machine's: with 0.0.0.0 the server answers at 127.0.0.2 as it would to others."""
    pytest.importorskip("flask_wtf")
    port = free_port()
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", "correct-horse-battery")
    command, environment = server_command(uri, port, "0.0.0.0", tmp_path)
    page = f"http://127.0.0.2:{port}/api/2.0/mlflow/experiments/search?max_results=1"
    log = tmp_path / "log"
    with (
        log.open("wb") as out,
        subprocess.Popen(
            command, env=environment, cwd=tmp_path, start_new_session=True, stdout=out, stderr=out
        ) as process,
    ):
        try:
            end = time.monotonic() + 240
            while check_store(f"http://127.0.0.1:{port}") is not None:
                assert time.monotonic() < end and process.poll() is None, log.read_text()[-2000:]
                time.sleep(0.3)

            def status(password: str | None) -> int:
                request = urllib.request.Request(page, headers={"Host": f"127.0.0.1:{port}"})
                if password is not None:
                    word = base64.b64encode(f"admin:{password}".encode()).decode()
                    request.add_header("Authorization", f"Basic {word}")
                try:
                    return int(urllib.request.urlopen(request, timeout=60).status)
                except urllib.error.HTTPError as error:
                    return error.code

            assert [status(None), status("password1234"), status("correct-horse-battery")] == [401, 401, 200]
        finally:
            os.killpg(process.pid, signal.SIGTERM)

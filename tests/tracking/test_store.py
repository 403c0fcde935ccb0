"""A tracking URI that can't be used is told in one sentence, quickly, with what to do."""

from __future__ import annotations

import http.server
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hgrnx.errors import UserError
from hgrnx.tracking.mlflow_store import init_store, serve
from hgrnx.tracking.store_check import check_store, shown, within

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

"""Can a tracking URI be used? Answered within seconds, without importing mlflow."""

from __future__ import annotations

import ipaddress
import os
import socket
import sqlite3
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

from hgrnx.config.secrets import redact

LOOPBACK = "127.0.0.1"
_T = TypeVar("_T")


def check_store(uri: str, timeout: float = 5.0) -> str | None:
    """What is wrong with the store at ``uri`` and what to do about it; None when it can be used.

    A server must answer, whatever it answers, within ``timeout`` seconds. A SQLite file, when there is one,
    must be one that MLflow set up, and writable. Databases of other kinds are not looked at here.
    """
    scheme = urlsplit(uri).scheme
    if scheme in {"http", "https"}:
        return _check_server(uri, timeout)
    if scheme == "sqlite":
        try:
            return within(timeout, lambda: _check_sqlite(uri))
        except TimeoutError:
            return f"The disk of the MLflow database {shown(uri)} did not answer in {timeout:g} seconds."
    if scheme in {"", "file"}:
        path = Path(urlsplit(uri).path or uri).absolute()
        return (
            f"MLflow no longer keeps runs in plain folders ('{uri}'). "
            f"Use a database file, MLFLOW_TRACKING_URI=sqlite:///{path / 'mlflow.db'}, "
            "or a server's http:// address."
        )
    return None


def sqlite_path(uri: str) -> Path | None:
    """The database file of a ``sqlite:///`` URI, None for any other URI."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(unquote(uri.removeprefix("sqlite:///").partition("?")[0]))


def shown(uri: str) -> str:
    """``uri`` without the user name and password that it may carry."""
    parts = urlsplit(uri)
    if "@" in parts.netloc:
        uri = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    return redact(uri)  # ?password=...


def within(timeout: float, work: Callable[[], _T]) -> _T:
    """The result of ``work()``, or TimeoutError; what hangs is left behind in a daemon thread."""
    results: list[_T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=body, name="hgrnx-store-check", daemon=True)
    thread.start()
    thread.join(timeout)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError
    return results[0]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on ``path``; the system releases it when the process dies."""
    import fcntl

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on the address ``host``; False for what is no address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def port_is_free(port: int) -> bool:
    """Whether a server could listen on this port of the loopback interface."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def _check_server(uri: str, timeout: float) -> str | None:
    def ask() -> str | None:
        try:
            # Without credentials: the answer "not allowed" also says that the server is there.
            urllib.request.urlopen(shown(uri).rstrip("/") + "/health", timeout=timeout).close()
        except urllib.error.HTTPError as error:
            return f"it answered '{error.code} {error.reason}'" if error.code >= 500 else None
        except (OSError, ValueError) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(reason, TimeoutError):
                raise TimeoutError from None
            return str(reason)
        return None

    try:
        reason = within(timeout, ask)
    except TimeoutError:
        reason = f"no answer in {timeout:g} seconds"
    if reason is None:
        return None
    return (
        f"The MLflow server {shown(uri)} can't be reached: {reason}. Start it (mlflow server), correct "
        "MLFLOW_TRACKING_URI, or unset that variable to keep the runs in a local database."
    )


def _check_sqlite(uri: str) -> str | None:
    path = sqlite_path(uri)
    if path is None or not path.is_absolute():
        return (
            f"'{uri}' does not name a database by an absolute path: it would be lost when the working "
            f"directory changes. Use sqlite:///{Path(path or 'mlflow.db').absolute()}."
        )
    try:
        folder = next(parent for parent in path.parents if parent.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            return f"The MLflow database can't be kept in {path.parent}: {folder} is not a writable folder."
        if not path.exists() or path.stat().st_size == 0:
            return None
        if not os.access(path, os.W_OK):
            return f"The MLflow database {path} is read-only. Correct its rights, or set MLFLOW_TRACKING_URI."
        connection = sqlite3.connect(f"file:{path}?mode=ro".replace("#", "%23"), uri=True, timeout=5)
        try:
            tables = {row[0] for row in connection.execute("select name from sqlite_master where type = 'table'")}
        finally:
            connection.close()
    except (OSError, sqlite3.DatabaseError) as error:
        return (
            f"The MLflow database {path} can't be read: {error}. "
            "Move the file away (a new one is made), or set MLFLOW_TRACKING_URI to another."
        )
    if not {"experiments", "runs", "alembic_version"} <= tables:
        return (
            f"{path} is not a whole MLflow database (its setting up may have been interrupted). "
            "Move the file away (a new one is made), or set MLFLOW_TRACKING_URI to another."
        )
    return None

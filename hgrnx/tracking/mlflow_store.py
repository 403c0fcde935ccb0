"""Opening MLflow's store: the only place that imports mlflow, bounded in time and quiet."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hgrnx.errors import UserError
from hgrnx.tracking.store_check import check_store, locked, port_is_free, shown, sqlite_path


def load() -> Any:
    """Import mlflow (2 to 3 seconds the first time) so that it gives up on a silent server after seconds.

    The user's own ``MLFLOW_*`` variables win over these limits.
    """
    for name, value in {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }.items():
        os.environ.setdefault(name, value)
    import mlflow

    # Their messages and stack traces would land in the middle of the user's progress display.
    for name in ("alembic", "mlflow.store", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return mlflow


def connect(uri: str) -> Any:
    """A ``MlflowClient`` of ``uri``."""
    return load().MlflowClient(tracking_uri=uri)


def init_store(uri: str, timeout: float = 5.0) -> None:
    """Make sure that the store at ``uri`` is there and usable, before any worker starts.

    A SQLite database is set up once, under a file lock, and appears whole: several processes that open a
    fresh one at the same time leave it broken.

    Raises:
        UserError: it can't be used; says what to do.
    """
    problem = check_store(uri, timeout)
    if problem:
        raise UserError(problem)
    path = sqlite_path(uri)
    with explained(uri):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with locked(path.with_name(path.name + ".lock")):
                if not path.exists() or path.stat().st_size == 0:
                    aside = path.with_name(f".{path.name}.{os.getpid()}.new")
                    aside.unlink(missing_ok=True)  # left by a killed process of the same number
                    connect(f"sqlite:///{aside}").search_experiments(max_results=1)
                    os.replace(aside, path)
        connect(uri).search_experiments(max_results=1)


def artifact_root(uri: str) -> str | None:
    """Where artifacts go: a folder beside a local database, and whatever a server has chosen (None)."""
    database = sqlite_path(uri)
    # Left to itself, MLflow uses ./mlruns, wherever the process happens to run.
    return (database.parent / "mlflow-artifacts").as_uri() if database else None


def serve(uri: str, port: int = 5000) -> None:
    """Show the runs of a local store in the browser, on the loopback interface only, until interrupted.

    Raises:
        UserError: the runs are on a server, the port is taken, or the store can't be used.
    """
    if uri.startswith(("http://", "https://")):
        raise UserError(f"The runs are on a server, which has a page of its own: open {shown(uri)}")
    if not port_is_free(port):
        raise UserError(f"Port {port} is in use on this machine. Choose another with --port.")
    init_store(uri)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    root = artifact_root(uri)
    if root is not None:
        command += ["--default-artifact-root", root]
    database = sqlite_path(uri)
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **os.environ}
    print(f"http://127.0.0.1:{port}  (ready in some seconds; Ctrl-C ends it)", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the server never outlives this process
    # In a session of its own, so that Ctrl-C ends all its processes from here and not each with a stack trace.
    with subprocess.Popen(
        command, cwd=database.parent if database else Path.home(), env=environment, start_new_session=True
    ) as process:
        try:
            status = process.wait()
        except BaseException as stop:
            os.killpg(process.pid, signal.SIGTERM)
            if isinstance(stop, KeyboardInterrupt):
                return
            raise
    if status:
        raise UserError(f"MLflow's page ended with status {status}; its messages are above.")


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turns what MLflow and its database raise into a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        database = type(error).__module__.startswith("sqlalchemy")
        if not (database or isinstance(error, OSError | load().MlflowException)):
            raise
        if uri.startswith("http"):  # a server that is away is told better than by MLflow's retries
            problem = check_store(uri)
            if problem:
                raise UserError(problem) from None
        reason = str(getattr(error, "message", error)).strip().partition("\n")[0]
        if "out-of-date database schema" in reason:
            reason = (
                "it was made by another version of MLflow. Keep a copy of it and run "
                f"'mlflow db upgrade {shown(uri)}', or set MLFLOW_TRACKING_URI to another"
            )
        raise UserError(f"The MLflow store {shown(uri)} can't be used: {reason.rstrip('.')}.") from None

"""Opening MLflow's store: the only place that imports mlflow, bounded in time and quiet."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hgrnx.config.secrets import redact
from hgrnx.errors import UserError
from hgrnx.tracking.store_check import LOOPBACK, check_store, is_loopback, locked, port_is_free, shown, sqlite_path


def load() -> Any:
    """Import mlflow (2 to 3 seconds the first time) so that it gives up on a silent server after seconds.

    The user's own ``MLFLOW_*`` variables win over these limits.
    """
    for name, value in {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
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


def serve(uri: str, port: int = 5000, host: str = LOOPBACK) -> None:
    """Show the runs of a local store in the browser until interrupted; beyond loopback only to who has a password.

    Raises:
        UserError: the runs are on a server, the port is taken, the store can't be used, or ``host`` lets others in
            and there is no password, or nothing to ask for it.
    """
    if uri.startswith(("http://", "https://")):
        raise UserError(f"The runs are on a server, which has a page of its own: open {shown(uri)}")
    guarded = not is_loopback(host)
    if guarded:
        _check_guard(host)
    if not port_is_free(port):
        raise UserError(f"Port {port} is in use on this machine. Choose another with --port.")
    init_store(uri)
    with tempfile.TemporaryDirectory(prefix="hgrnx-ui-") as folder:
        command, environment = server_command(uri, port, host, Path(folder) if guarded else None)
        print(f"http://{host}:{port}  (ready in some seconds; Ctrl-C ends it)", flush=True)
        _run_server(command, environment)


def server_command(uri: str, port: int, host: str, accounts: Path | None) -> tuple[list[str], dict[str, str]]:
    """What starts MLflow's server on the store ``uri``, and its environment, which alone has the secrets.

    Artifacts of a local database lie beside it. ``accounts`` is a folder of the caller's where MLflow keeps who may
    enter (it makes the account of ``MLFLOW_AUTH_ADMIN_USERNAME`` and ``..._PASSWORD``); None asks nobody.
    """
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"]
    # In the environment and not among the arguments, which every user of the machine can read: a database's URI has
    # its password.
    environment = {**os.environ, "MLFLOW_BACKEND_STORE_URI": uri}
    environment.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    root = artifact_root(uri)
    if root is not None:
        command += ["--artifacts-destination", root]
    if accounts is not None:
        settings = accounts / "auth.ini"
        settings.write_text(
            "[mlflow]\n"
            "default_permission = NO_PERMISSIONS\n"
            f"database_uri = sqlite:///{accounts / 'accounts.db'}\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n",
            encoding="utf-8",
        )
        command += ["--app-name", "basic-auth"]
        environment["MLFLOW_AUTH_CONFIG_PATH"] = str(settings)
        environment.setdefault("MLFLOW_AUTH_ADMIN_USERNAME", "admin")
        environment.setdefault("MLFLOW_FLASK_SERVER_SECRET_KEY", secrets.token_hex(32))
    return command, environment


def _check_guard(host: str) -> None:
    if not os.environ.get("MLFLOW_AUTH_ADMIN_PASSWORD"):
        raise UserError(
            f"--host {host} opens the page to other machines, so it needs a password: set MLFLOW_AUTH_ADMIN_PASSWORD "
            "(and MLFLOW_AUTH_ADMIN_USERNAME, else 'admin'). Or leave --host out and reach it through a tunnel: "
            "ssh -L 5000:127.0.0.1:5000 THIS_MACHINE"
        )
    if find_spec("flask_wtf") is None:
        raise UserError("MLflow asks for passwords only with the package Flask-WTF: pip install 'mlflow[auth]'")


def _run_server(command: list[str], environment: dict[str, str]) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the server never outlives this process
    # In a session of its own, so that Ctrl-C ends all its processes from here and not each with a stack trace.
    with subprocess.Popen(command, cwd=Path.home(), env=environment, start_new_session=True) as process:
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
        reason = redact(str(getattr(error, "message", error)).strip().partition("\n")[0])
        if "out-of-date database schema" in reason:
            reason = (
                "it was made by another version of MLflow. Keep a copy of it and run "
                f"'mlflow db upgrade {shown(uri)}', or set MLFLOW_TRACKING_URI to another"
            )
        raise UserError(f"The MLflow store {shown(uri)} can't be used: {reason.rstrip('.')}.") from None

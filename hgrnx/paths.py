"""Where runs, prepared data and the MLflow database live on this machine.

Everything sits under ``$HGRNX_HOME`` (default: a per-user folder), and each part can be moved by its own
variable. Places are always absolute: under ``ray job submit`` the working directory is a temporary copy
that is thrown away, so a relative place would lose the run.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import platformdirs

from hgrnx.errors import UserError


@dataclass(frozen=True)
class Places:
    """Absolute places of one installation: all are folders but ``mlflow_uri``, a tracking URI."""

    home: Path
    runs: Path
    data: Path
    signals: Path
    """What teachers say about the training text, stored."""
    mlflow_uri: str

    def run_dir(self, name: str) -> Path:
        """The folder of the run called ``name``."""
        return self.runs / name

    def environment(self) -> dict[str, str]:
        """The variables that make another process (a Ray worker) use the same places."""
        return {
            "HGRNX_HOME": str(self.home),
            "HGRNX_RUNS": str(self.runs),
            "HGRNX_DATA": str(self.data),
            "HGRNX_SIGNALS": str(self.signals),
            "MLFLOW_TRACKING_URI": self.mlflow_uri,
        }


def inside(folder: Path, name: object) -> Path:
    """``folder / name`` for a ``name`` that a manifest gives, which may have been written by anyone.

    Raises:
        UserError: it leads out of the folder (``..``, an absolute path), or is no name at all.
    """
    parts = PurePosixPath(name).parts if isinstance(name, str) else ()
    if not parts or parts[0] == "/" or ".." in parts or "\\" in str(name) or "\0" in str(name):
        raise UserError(f"{folder} names a file {name!r}, which leads out of it. Do not use it, get a whole copy.")
    return folder / str(name)


def resolve_places(home: str | os.PathLike[str] | None = None) -> Places:
    """Read ``home`` (or ``$HGRNX_HOME``), ``$HGRNX_{RUNS,DATA,SIGNALS}``, ``$MLFLOW_TRACKING_URI``.

    With a ``home`` the variables do not count, but for a server that ``$MLFLOW_TRACKING_URI`` names: it is in no home.

    Raises:
        UserError: a place is relative, or lies inside Ray's temporary folders, where it would be deleted.
    """
    base = _absolute("HGRNX_HOME", str(home or os.environ.get("HGRNX_HOME") or platformdirs.user_data_dir("hgrnx")))
    # An explicit `home` moves the parts along: variables left over in the shell must not split them.
    env = {} if home else os.environ
    runs = _absolute("HGRNX_RUNS", env.get("HGRNX_RUNS") or str(base / "runs"))
    data = _absolute("HGRNX_DATA", env.get("HGRNX_DATA") or str(base / "data"))
    signals = _absolute("HGRNX_SIGNALS", env.get("HGRNX_SIGNALS") or str(base / "signals"))
    mlflow_uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not mlflow_uri or (home and not _is_server(mlflow_uri)):
        mlflow_uri = f"sqlite:///{base / 'mlflow.db'}"
    return Places(home=base, runs=runs, data=data, signals=signals, mlflow_uri=mlflow_uri)


def _is_server(mlflow_uri: str) -> bool:
    scheme, separator, _ = mlflow_uri.partition("://")
    return bool(separator) and scheme not in ("sqlite", "file")


def _absolute(name: str, value: str) -> Path:
    path = Path(value).expanduser()
    if not path.is_absolute():
        raise UserError(f"{name}={value} is a relative path. Give an absolute one, such as {Path.cwd() / value}.")
    path = path.resolve()
    if any(part.startswith(("_ray_pkg_", "working_dir_files")) for part in path.parts):
        raise UserError(
            f"{name}={value} lies in a temporary folder of Ray, which is deleted after the job. "
            "Give a folder that stays: --home /absolute/path, or set HGRNX_HOME on the cluster."
        )
    return path

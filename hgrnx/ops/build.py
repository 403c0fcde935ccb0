"""Compiling the C++ in ``csrc`` on first use, and keeping the library for the next process.

Libraries are kept in the user's cache folder (``$XDG_CACHE_HOME/hgrnx/kernels``, by default under ``~/.cache``), as
``KEY.CHECKSUM.so``: the key is a hash of everything that the library depends on, the checksum one of its contents.
A file is written aside and renamed, so that readers see all of it or nothing, and one whose contents do not have
their checksum (a full disk) is made anew. A lock keeps other processes from building the same at the same time; the
system releases it when its owner ends, however it ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import platformdirs
import torch

_SOURCES = Path(__file__).parent / "csrc"
_TIME_LIMIT = 900  # seconds; on a busy machine one minute is normal
# What torch's own code generator gives to the compiler for ATen's vectors. Without them they are plain arrays.
_INSTRUCTIONS = {
    "AVX512": ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mfma"],
    "AVX2": ["-mavx2", "-mfma", "-mf16c"],
}


class BuildError(Exception):
    """Why there is no library, for the person who wonders."""


def built_library() -> Path:
    """The library for this processor, this torch and this compiler; built now unless it was before.

    Raises:
        BuildError: this is not Linux, there is no compiler, it failed, or the cache folder cannot be written.
    """
    if sys.platform != "linux":
        raise BuildError("the kernels are built on Linux only")
    compiler, flags = _compiler(), _flags()
    key = _key(compiler, flags)
    folder = platformdirs.user_cache_path("hgrnx") / "kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / f"{key}.lock"):
            return _whole_library(folder, key) or _build(compiler, flags, folder, key)
    except OSError as error:
        raise BuildError(f"the cache folder {folder} cannot be used ({error}); XDG_CACHE_HOME moves it") from error


def _compiler() -> list[str]:
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise BuildError("there is no C++ compiler (c++, g++ or clang++) on PATH; CXX can name one")


def _flags() -> list[str]:
    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in _INSTRUCTIONS:
        capability = "DEFAULT"
    defines = [f"-DCPU_CAPABILITY={capability}", f"-DCPU_CAPABILITY_{capability}"]
    common = ["-std=c++20", "-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-fopenmp"]
    return [*common, *_INSTRUCTIONS.get(capability, []), *defines]


def _key(compiler: list[str], flags: list[str]) -> str:
    parts = [" ".join([*compiler, *flags]), _version(compiler), torch.__version__]
    parts += [platform.machine(), *platform.libc_ver()]
    parts += [source.read_text(encoding="utf-8") for source in sorted(_SOURCES.iterdir()) if source.is_file()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _version(compiler: list[str]) -> str:
    try:
        return subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        raise BuildError(f"the C++ compiler '{shlex.join(compiler)}' does not run ({error})") from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    import fcntl

    with path.open("w") as lock:
        # Some network file systems have no locks. Without one, work may be done twice, but nothing breaks.
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _whole_library(folder: Path, key: str) -> Path | None:
    for path in folder.glob(f"{key}.*.so"):
        if path.name == _name(key, path.read_bytes()):
            return path
        path.unlink(missing_ok=True)
    return None


def _name(key: str, contents: bytes) -> str:
    return f"{key}.{hashlib.sha256(contents).hexdigest()[:32]}.so"


def _build(compiler: list[str], flags: list[str], folder: Path, key: str) -> Path:
    torch_home = Path(torch.__file__).parent
    libraries = [f"-L{torch_home / 'lib'}", "-ltorch_cpu", "-lc10"]
    with tempfile.TemporaryDirectory(prefix="hgrnx-") as scratch:
        output = Path(scratch) / "library.so"
        files = [str(path) for path in sorted(_SOURCES.glob("*.cpp"))]
        source = [f"-I{torch_home / 'include'}", *files, "-o", str(output)]
        try:
            done = subprocess.run(
                [*compiler, *flags, *source, *libraries], capture_output=True, text=True, timeout=_TIME_LIMIT
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise BuildError(f"the C++ compiler '{shlex.join(compiler)}' does not run ({error})") from error
        if done.returncode != 0 or not output.exists():
            lines = [line for line in done.stderr.splitlines() if "error" in line] or [f"status {done.returncode}"]
            raise BuildError(f"the C++ compiler '{shlex.join(compiler)}' failed: {lines[0].strip()}")
        contents = output.read_bytes()
    library = folder / _name(key, contents)
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as aside:
        aside.write(contents)
    os.replace(aside.name, library)
    return library

"""The dependency audit fails for a vulnerability and for nothing else."""

from __future__ import annotations

import http.server
import importlib.util
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, for a project of two packages."""
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "constraints.txt").write_text("# pinned\ngood_Package==1.0\nbad==2.0.1\n")
    (tmp_path / "pyproject.toml").write_text('[tool.audit]\nignore = {"PYSEC-2" = "not called"}\n')
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module


@contextmanager
def service(answer: Callable[[dict[str, Any]], bytes]) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            content = answer(asked)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()


def known(*ids: str) -> Callable[[dict[str, Any]], bytes]:
    def answer(asked: dict[str, Any]) -> bytes:
        names = [(query["package"]["name"], query["version"]) for query in asked["queries"]]
        assert names == [("good-package", "1.0"), ("bad", "2.0.1")]
        return json.dumps({"results": [{}, {"vulns": [{"id": one} for one in ids]}]}).encode()

    return answer


def test_a_vulnerability_fails_and_is_named(audit: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with service(known("GHSA-1", "PYSEC-2")) as url:
        assert audit.main(url) == 1
        assert audit.main(url, warn=True) == 0
    printed = capsys.readouterr().out
    assert "bad 2.0.1: https://osv.dev/GHSA-1\n" in printed and "good" not in printed


def test_none_or_an_excused_one_passes(audit: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    for ids in ((), ("PYSEC-2",)):
        with service(known(*ids)) as url:
            assert audit.main(url) == 0
        assert "no known vulnerability in 2 packages" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"<html>log in</html>", b"[]", b'{"results": [{}]}', b'{"results": 1}'])
def test_no_proper_answer_is_said_and_passes(
    audit: ModuleType, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    with service(lambda asked: content) as url:
        assert audit.main(url) == 0
    assert "audit: not done" in capsys.readouterr().out
    assert audit.main("http://127.0.0.1:1/") == 0
    assert "audit: not done" in capsys.readouterr().out


def test_the_projects_own_pins_are_read(audit: ModuleType) -> None:
    versions = audit.pinned((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    assert versions["torch"] == "2.13.0" and versions["huggingface-hub"] and len(versions) > 100

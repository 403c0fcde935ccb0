from __future__ import annotations

import json
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from hgrnx.errors import UserError
from hgrnx.evaluation.predictions import read_predictions
from hgrnx.evaluation.submission import check_submission_path, encrypted_zip, write_submission

TEXTS = {
    "blimp": {"islands": [("Who?", "What?"), ("Good.", "Bad.")]},
    "ewok": {"social": [("The secret fits.", "The secret fails.")]},
}
PREDICTIONS = {
    "blimp": {"islands": {"chosen": [0, 1]}},
    "ewok": {"social": {"chosen": [1]}},
    "glue": {"cola": {"chosen": [1, 0]}},
    "bear": {"P6": {"chosen": [[3]]}},
}


def test_texts_come_back_and_ewok_stays_hidden(tmp_path: Path) -> None:
    files = write_submission(tmp_path / "mine.json.gz", PREDICTIONS, TEXTS)
    assert [path.name for path in files] == ["mine.json.gz", "mine-ewok.zip"]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    found = read_predictions(files)
    assert found == {
        "blimp": {"islands": [{"id": "islands_0", "pred": " Who?"}, {"id": "islands_1", "pred": " Bad."}]},
        "glue": {"cola": [{"id": "cola_0", "pred": 1}, {"id": "cola_1", "pred": 0}]},
        "ewok": {"social": [{"id": "social_0", "pred": " The secret fails."}]},
    }
    assert read_predictions(files[:1]).keys() == {"blimp", "glue"}
    for path in files:
        assert b"secret" not in path.read_bytes()


@pytest.mark.parametrize("size", [0, 1, 40, 100_000])
def test_zip_opens_with_the_password_only(size: int) -> None:
    content = bytes(range(256)) * (size // 256 + 1)
    archive = zipfile.ZipFile(BytesIO(encrypted_zip({"b/c.json": b"{}", "a.json": content[:size]}, b"ewok")))
    assert archive.namelist() == ["b/c.json", "a.json"]
    assert archive.read("b/c.json", pwd=b"ewok") == b"{}"
    assert archive.read("a.json", pwd=b"ewok") == content[:size]
    with pytest.raises(RuntimeError, match="encrypted"):
        archive.read("a.json")
    refused = 0
    for number in range(20):  # one in 256 gets past the check byte, and then fails the checksum
        try:
            archive.read("a.json", pwd=f"wrong{number}".encode())
        except (RuntimeError, zipfile.BadZipFile, zipfile.zlib.error):  # type: ignore[attr-defined]
            refused += 1
    assert refused == 20


def test_plain_json_and_tasks_that_are_absent(tmp_path: Path) -> None:
    files = write_submission(tmp_path / "mine.json", {"blimp": PREDICTIONS["blimp"]}, TEXTS)
    assert [path.name for path in files] == ["mine.json"]
    assert list(json.loads(files[0].read_text())) == ["blimp"]
    files = write_submission(tmp_path / "other.json.gz", {"ewok": PREDICTIONS["ewok"]}, TEXTS)
    assert [path.name for path in files] == ["other-ewok.zip"]


def test_places_are_checked_before(tmp_path: Path) -> None:
    check_submission_path(tmp_path / "mine.json.gz")
    for path in (tmp_path / "mine.zip", tmp_path / "nowhere" / "mine.json.gz"):
        with pytest.raises(UserError, match=str(path)):
            check_submission_path(path)

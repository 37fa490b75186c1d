"""``fetch``: a raw folder as a whole or not at all, and ``source.json``."""

import errno
import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest
from tests.data.archives import make_celeba

from unveil.data.config import Celeba, Download
from unveil.data.sources import SourceRecord, celeba, fetch
from unveil.data.sources.facts import worker_count
from unveil.errors import UnveilError, line_for_user


def silent(line: str) -> None:
    """Say nothing."""


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def get(raw: Path, own: Path) -> SourceRecord:
    return fetch(raw, Download(source="celeba", celeba=Celeba(path=own)), say=silent)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return make_celeba(tmp_path / "own", num_images=10)


def test_the_record_tells_what_lies_there(own: Path, tmp_path: Path) -> None:
    raw = tmp_path / "data" / "raw"
    record = get(raw, own)
    written = json.loads((raw / "source.json").read_text())
    assert written == json.loads(json.dumps(asdict(record)))
    assert SourceRecord.load(raw) == record
    assert (written["source"], written["images"], written["canvas"]) == ("celeba", 10, [178, 218])
    assert written["published"] is False
    files = contents(raw)
    del files["source.json"]
    assert written["files"] == {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in sorted(files.items())
    }


def test_the_record_is_the_same_everywhere(own: Path, tmp_path: Path) -> None:
    get(tmp_path / "a", own)
    elsewhere = own.rename(tmp_path / "another place")
    get(tmp_path / "b", elsewhere)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert str(tmp_path) not in (tmp_path / "a" / "source.json").read_text()


def test_an_old_folder_is_replaced_as_a_whole(own: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "old.txt").write_text("old")
    get(raw, own)
    assert "old.txt" not in contents(raw)


@pytest.mark.parametrize("old", [True, False])
def test_a_failure_leaves_what_was_there(own: Path, tmp_path: Path, old: bool) -> None:
    raw = tmp_path / "data" / "raw"
    if old:
        get(raw, own)
    before = contents(raw) if old else None
    (own / "identity_CelebA.txt").write_text("broken\n")
    with pytest.raises(UnveilError, match="line 1"):
        get(raw, own)
    assert (contents(raw) if raw.exists() else None) == before
    assert [path.name for path in raw.parent.iterdir()] == (["raw"] if old else [])


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO])
def test_what_the_system_refuses_is_one_line(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, named: bool
) -> None:
    raw = tmp_path / "raw"
    get(raw, own)
    before = contents(raw)

    def refuse(source: Path, target: Path, say: object) -> str:
        target.write_bytes(b"half")
        raise OSError(number, os.strerror(number), *([str(target)] if named else []))

    monkeypatch.setattr(celeba, "copy_file", refuse)
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        get(raw, own)
    line = line_for_user(caught.value)
    assert line is not None and "\n" not in line
    place = f"{raw}/img_align_celeba.zip: " if named else "" if number == errno.EIO else f"{raw}: "
    assert line.startswith(f"{place}the system says: ")
    assert contents(raw) == before
    assert {path.name for path in tmp_path.iterdir()} == {"own", "raw"}


def test_a_record_that_is_not_there_or_not_ours_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnveilError, match="not there"):
        SourceRecord.load(tmp_path)
    for text in ("{", "[]", "{}", '{"files": 3}'):
        (tmp_path / "source.json").write_text(text)
        with pytest.raises(UnveilError, match="run the download stage again"):
            SourceRecord.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": "10"}, "images: found"),
        ({"source": "web"}, "source: found"),
        ({"canvas": [178]}, "canvas.1 is missing"),
        ({"files": {"../x": {"bytes": 1, "sha256": "0" * 64}}}, 'files."../x"'),
        ({"published": "no"}, "published: found"),
        ({"more": 1}, "more: unknown key"),
    ],
)
def test_a_value_of_the_record_that_cannot_be_is_named(
    own: Path, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    record = asdict(get(tmp_path / "raw", own))
    (tmp_path / "source.json").write_text(json.dumps(record | changes))
    with pytest.raises(UnveilError) as caught:
        SourceRecord.load(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'source.json'}: {said}") and str(caught.value).isprintable()


def test_workers() -> None:
    assert worker_count(3) == 3
    assert worker_count(0) >= 1
    with pytest.raises(UnveilError, match="-1"):
        worker_count(-1)

"""Where images come from.

Every source writes CelebA's own layout, so that nothing after it knows which it was.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from unveil.data.sources.facts import SOURCE_FILE, FileFacts, SourceFacts, SourceRecord
from unveil.errors import UnveilError
from unveil.files import atomic_directory, file_digest, write_json
from unveil.progress import Say

__all__ = ["SourceFacts", "SourceName", "SourceRecord", "fetch"]

SourceName = Literal["cartoon", "celeba", "folder"]


def fetch(
    raw: Path,
    *,
    source: SourceName,
    workers: int = 0,
    split: Mapping[str, float],
    num_faces: int = 0,
    seed: int = 0,
    celeba_path: Path | None = None,
    mirror: bool = True,
    folder_path: Path | None = None,
    attributes: Path | None = None,
    on_corrupt: str = "error",
    downloads: Path = Path(".unveil/downloads"),
    say: Say = print,
) -> SourceRecord:
    """Fill the folder ``raw`` from a source, or leave it as it was.

    Args:
        raw: gets CelebA's layout (``unveil.data.celeba``) and ``source.json``; an old one is replaced.
        source: which; the arguments of the others are not read.
        workers: processes that draw or re-encode; 0 = all cores. Never changes the result.
        split: cartoon, folder: shares of train, valid and test.
        num_faces: cartoon: faces to draw.
        seed: cartoon: another seed, other faces.
        celeba_path: celeba: the zip, a folder that holds it, or the folder of unpacked images; None takes
            $CELEBA_ROOT, then the network.
        mirror: celeba: whether a mirror may deliver what Google Drive does not.
        folder_path: folder: the folder of images, in any depth, hidden ones aside.
        attributes: folder: CSV; first column the file name (the path in the folder, or the bare name where it is the
            only one), then any of CelebA's 40 attributes as 0/1 or -1/1. Attributes without a column, and all of them
            without a CSV, are false.
        on_corrupt: folder: ``error`` names the unreadable images, ``skip`` leaves them out and moves no others.
        downloads: celeba: where files from the network gather, and stay if not all arrive.
        say: takes lines of progress.

    Returns:
        What now stands in ``source.json``.

    Raises:
        UnveilError: whatever the user can mend.
        OSError: with the path, for what the system refuses, a full disk included.
    """
    with atomic_directory(raw) as folder:
        if source == "cartoon":
            from unveil.data.sources import cartoon

            facts = cartoon.write(folder, num_faces=num_faces, seed=seed, split=dict(split), workers=workers)
        elif source == "celeba":
            from unveil.data.sources import celeba

            facts = celeba.write(folder, path=celeba_path, mirror=mirror, say=say, downloads=downloads)
        else:
            from unveil.data.sources import folder as any_images

            if folder_path is None:
                raise UnveilError("download.folder.path: found null, expected the folder of images")
            facts = any_images.write(
                folder,
                path=folder_path,
                attributes=attributes,
                split=split,
                workers=workers,
                on_corrupt=on_corrupt,
                say=say,
            )
        record = _record(source, facts, folder)
        write_json(folder / SOURCE_FILE, record.to_json())
    return record


def _record(source: SourceName, facts: SourceFacts, folder: Path) -> SourceRecord:
    paths = sorted(path for path in folder.iterdir() if path.name != SOURCE_FILE)
    files = {path.name: FileFacts(path.stat().st_size, file_digest(path)) for path in paths}
    return SourceRecord(source=source, files=files, **vars(facts))

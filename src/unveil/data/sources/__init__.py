"""Where images come from.

Every source writes CelebA's own layout, so that nothing after it knows which it was.
"""

from dataclasses import asdict, replace
from pathlib import Path

from unveil.data.config import Download
from unveil.data.sources.facts import SOURCE_FILE, FileFacts, SourceRecord
from unveil.files import atomic_directory, file_digest, write_json
from unveil.progress import Say

__all__ = ["SourceRecord", "fetch"]


def fetch(
    raw: Path,
    settings: Download,
    *,
    on_corrupt: str = "error",
    downloads: Path = Path(".unveil/downloads"),
    say: Say = print,
) -> SourceRecord:
    """Fill the folder ``raw`` from a source, or leave it as it was.

    Args:
        raw: gets CelebA's layout (``unveil.data.celeba``) and ``source.json``; an old one is replaced.
        settings: which source, and what it is told.
        on_corrupt: folder: ``error`` names the unreadable images, ``skip`` leaves them out and moves no others.
        downloads: celeba: where files from the network gather, and stay if not all arrive.
        say: takes lines of progress.

    Returns:
        What now stands in ``source.json``.

    Raises:
        UnveilError: whatever the user can mend.
        OSError: with the path, for what the system refuses, a full disk included.
    """
    split = settings.split.model_dump()
    with atomic_directory(raw) as folder:
        if settings.source == "cartoon":
            from unveil.data.sources import cartoon

            record = cartoon.write(folder, **dict(settings.cartoon), split=split, workers=settings.workers)
        elif settings.source == "celeba":
            from unveil.data.sources import celeba

            record = celeba.write(folder, **dict(settings.celeba), say=say, downloads=downloads)
        else:
            from unveil.data.sources import folder as any_images

            record = any_images.write(
                folder, **dict(settings.folder), split=split, workers=settings.workers, on_corrupt=on_corrupt, say=say
            )
        paths = sorted(folder.iterdir())
        record = replace(record, files={path.name: FileFacts(path.stat().st_size, file_digest(path)) for path in paths})
        write_json(folder / SOURCE_FILE, asdict(record))
    return record

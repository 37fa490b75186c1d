"""Stage 1: bring the images to data/raw, in CelebA's own layout."""

from pathlib import Path
from typing import Annotated

import typer

from unveil.data.sources import fetch
from unveil.layout import DOWNLOAD_RECORD, RAW
from unveil.progress import megabytes
from unveil.run.stage import stage

app = typer.Typer(add_completion=False)


@app.command()
def main(
    params: Annotated[Path, typer.Option(help="The file of parameters.", readable=False)] = Path("params.yaml"),
) -> None:
    """Bring the images to data/raw: draw them, copy them or download them."""
    with stage("download", params) as run:
        settings = run.params.download
        celeba = settings.celeba.replace(path=run.locate(settings.celeba.path))
        folder = settings.folder.replace(**{name: run.locate(path) for name, path in settings.folder})
        record = fetch(
            RAW,
            settings.replace(celeba=celeba, folder=folder),
            on_corrupt=run.params.preprocess.on_corrupt,
            downloads=run.project / ".unveil" / "downloads",
            say=run.say,
        )
        size = sum(file.bytes for file in record.files.values())
        run.log_metrics({"images": record.images, "bytes": size})
        run.log_artifact(RAW / "source.json")
        run.say(f"{RAW}: {record.images:,} images, {megabytes(size)}, {record.origin}")
        run.write_record(DOWNLOAD_RECORD)


if __name__ == "__main__":
    app()

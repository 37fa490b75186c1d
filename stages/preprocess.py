"""Stage 2: crop, resize and pack the images into tensor shards."""

from pathlib import Path
from typing import Annotated

import typer

from unveil.data.preprocess import preprocess
from unveil.data.shards import load_tensor
from unveil.figures import save_grid
from unveil.layout import CONTACT_SHEET, DOWNLOAD_RECORD, PREPROCESS_RECORD, RAW, SHARDS
from unveil.run.stage import stage

SHEET_ROWS, SHEET_COLUMNS = 8, 12
app = typer.Typer(add_completion=False)


@app.command()
def main(
    params: Annotated[Path, typer.Option(help="The file of parameters.", readable=False)] = Path("params.yaml"),
) -> None:
    """Crop, resize and pack the images into tensor shards, by the named protocol."""
    with stage("preprocess", params) as run:
        settings = run.params.preprocess
        run.follow(DOWNLOAD_RECORD)
        index = preprocess(
            RAW,
            SHARDS,
            protocol=settings.protocol,
            image_size=settings.image_size,
            shard_size=settings.shard_size,
            on_corrupt=settings.on_corrupt,
            workers=settings.workers,
            say=run.say,
        )
        save_grid(load_tensor(SHARDS, "train", limit=SHEET_ROWS * SHEET_COLUMNS), SHEET_COLUMNS, CONTACT_SHEET)
        run.log_metrics({f"images_{split}": index.num_images(split) for split in index.splits})
        run.log_metrics({"images_corrupt": len(index.corrupt)})
        run.log_artifact(SHARDS / "index.json")
        run.log_artifact(CONTACT_SHEET)
        run.log_image(CONTACT_SHEET.stem, CONTACT_SHEET)
        run.add_output(SHARDS.as_posix(), index.digest())
        counts = ", ".join(f"{split} {index.num_images(split):,}" for split in index.splits)
        run.say(f"{SHARDS}: {counts}, protocol {index.protocol}, {index.image_size} x {index.image_size}")
        if index.corrupt:
            run.say(f"left out {len(index.corrupt)} unreadable images, listed in {SHARDS}/index.json")
        run.write_record(PREPROCESS_RECORD)


if __name__ == "__main__":
    app()

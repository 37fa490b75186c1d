"""``unveil push``: results to DVC's remote, so that nobody computes them again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from unveil.cli.find import project_root
from unveil.errors import UnveilError, one_line


def push(
    remote: Annotated[str | None, typer.Option(help="Name of the remote; the default one, if left out.")] = None,
) -> None:
    """Push every result of this checkout, also uncommitted ones; `dvc repro --pull` elsewhere brings what it needs.

    `dvc push --run-cache` pushes what all results are called, but the files of the present one alone, and no metrics.
    """
    root = project_root()
    if root is None:
        raise UnveilError(f"{Path.cwd()}: found no DVC project here; call from one")
    import dvc.repo
    from dvc.exceptions import DvcException

    repo: Any = dvc.repo.Repo(str(root))
    with repo:
        runs = repo.stage_cache
        try:
            pushed = repo.push(remote=remote, run_cache=True)
            names = [Path(run).parts[-2:] for run in repo.cache.legacy.fs.find(runs.cache_dir)]
            files: Mapping[Any, set[Any]] = runs.get_used_objs(names)
            for odb, objects in files.items():
                result = repo.cloud.push(objects, remote=remote, odb=odb)
                pushed += len(result.transferred)
                if result.failed:
                    raise UnveilError(f"{len(result.failed)} files did not reach the remote; push again")
        except (DvcException, OSError) as error:
            raise UnveilError(f"{root}: DVC cannot push: {one_line(error)}") from error
    typer.echo(f"{pushed:,} files pushed; elsewhere: dvc pull --run-cache && dvc repro --pull")

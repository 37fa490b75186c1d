"""``unveil push``: results to DVC's remote, so that nobody computes them again."""

from contextlib import suppress
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
    from dvc.exceptions import CollectCacheError, DvcException

    repo: Any = dvc.repo.Repo(str(root))
    with repo:
        files: set[Any] = set()
        try:
            pushed = repo.push(remote=remote, run_cache=True)
            for run in repo.cache.legacy.fs.find(repo.stage_cache.cache_dir):
                with suppress(CollectCacheError):  # of somebody else's, whose files are not here
                    files.update(*repo.stage_cache.get_used_objs([Path(run).parts[-2:]]).values())
            result = repo.cloud.push(files, remote=remote)
        except (DvcException, OSError) as error:
            raise UnveilError(f"{root}: DVC cannot push: {one_line(error)}") from error
    if result.failed:
        raise UnveilError(f"{root}: {len(result.failed)} files did not reach the remote; push again")
    pushed += len(result.transferred)
    typer.echo(f"{pushed:,} files pushed; elsewhere: dvc pull --run-cache && dvc repro --pull")

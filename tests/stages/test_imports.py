"""What the start of a stage imports: it costs seconds, six times in a pipeline."""

import subprocess
import sys
from pathlib import Path

import pytest

from unveil.run.lineage import STAGES

# MLflow waits until a run opens, the others until a network or a conversion needs them.
LATER = {"diffusers", "gdown", "huggingface_hub", "mlflow", "pandas", "torch._dynamo", "torch_fidelity", "torchvision"}
LIGHT = {"card", "download", "oracle"}  # which need no tensors
NEVER_TO_THESE = {"matplotlib", "torch"}


@pytest.mark.parametrize("name", [*STAGES, "card"])
def test_a_stage_starts_without_what_takes_seconds_to_import(repository: Path, name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, stages.{name}; print(*sys.modules)"],
        cwd=repository,
        env={"PYTHONPATH": f"{repository}:{repository / 'src'}"},
        capture_output=True,
        text=True,
        check=True,
    )
    imported = set(done.stdout.split())
    assert f"stages.{name}" in imported
    assert not imported & (LATER | NEVER_TO_THESE if name in LIGHT else LATER)

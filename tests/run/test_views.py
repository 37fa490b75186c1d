"""unveil.run.views: what MLflow's pages find in the tag of a view."""

import base64
import json
import zlib
from typing import Any

import pytest
from mlflow.entities import Param, Run, RunData, RunInfo, RunTag

from unveil.run.views import View, compared_address, comparison, standing_views


def run(number: int, features: str = "", **tags: str) -> Run:
    info = RunInfo(f"{number:032x}", str(number % 2), "user", "FINISHED", 0, 1, "active")
    params = [Param("evaluate.features", features)] if features else []
    return Run(info, RunData(params=params, tags=[RunTag(f"unveil.upstream.{key}", tags[key]) for key in tags]))


def state(view: View) -> dict[str, Any]:
    """As the pages read it."""
    key, value = view.tag(7)
    envelope = json.loads(value)
    assert key == f"mlflow.sharedViewState.unveil-{view.key}" and len(value) < 20_000  # MLflow takes no more
    assert (envelope["name"], envelope["createdAt"]) == (view.title, 7)
    kind, _, packed = envelope["state"].partition(";")
    assert kind == "deflate"
    found: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(packed)))
    charts, sections = found["compareRunCharts"], found["compareRunSections"]
    assert {chart["metricSectionId"] for chart in charts} <= {section["uuid"] for section in sections}
    assert len({chart["uuid"] for chart in charts}) == len(charts)
    assert found["columnOrder"] == found["selectedColumns"] == list(found["columnWidths"])
    return found


@pytest.mark.parametrize(
    ("features", "distance", "precision"),
    [
        ("", "fid", "precision"),
        ('["dinov2","inception"]', "fd_dinov2", "precision_dinov2"),
        ("no list, nor a network", "fid", "precision"),
    ],
)
def test_evaluations_are_sorted_by_the_distance_that_they_have(features: str, distance: str, precision: str) -> None:
    views = {view.key: view for view in standing_views([run(1, features)], 512)}
    found = state(views["distance"])
    assert (found["orderByKey"], found["orderByAsc"]) == (f"metrics.`{distance}`", True)
    assert found["searchFilter"] == "tags.`unveil.stage` = 'evaluate'"
    wanted = {f"metrics.`{name}`" for name in (distance, f"{distance}_fraction", precision, "sample.nfe")}
    assert {*wanted, "params.`train.lr`", "params.`sample.sampler`"} <= set(found["selectedColumns"])
    (preview,) = state(views["previews"])["compareRunCharts"]
    assert (preview["imageKeys"], preview["step"]) == (["preview"], 512)


def test_a_comparison_shows_the_runs_that_evaluations_came_from() -> None:
    compared = [run(1, train=f"{3:032x}", sample="untracked"), run(2, train=f"{3:032x}", sample=f"{4:032x}")]
    found = state(comparison(compared, 0))
    assert found["searchFilter"].count("'") == 8
    assert all(f"'{number:032x}'" in found["searchFilter"] for number in (1, 2, 3, 4))
    assert "experiments=%5B%220%22%2C%221%22%5D" in compared_address("http://host", compared)

"""Views of the runs on MLflow's pages. The pages keep what a user saves as tags of the experiment; so are these kept.

A view says which runs are listed, in which order, with which columns, charts and images.
"""

import base64
import json
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from unveil.errors import UnveilError
from unveil.evaluation.features.published import FEATURE_SETS, FeatureSet

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

TAG = "mlflow.sharedViewState."
LONGEST = 20_000  # characters of a tag's value that MLflow takes
OWN = "unveil-"  # how the names of these views' tags go on
# Without it MLflow 3 shows its pages for agents.
PAGES = "workflowType=machine_learning"
CHART_DEFAULTS: dict[str, dict[str, Any]] = {
    "LINE": {
        "xAxisKey": "step",
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "lineSmoothness": 0,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    },
    "BAR": {},
    "IMAGE": {"showRunParams": False},
    "DIFFERENCE": {
        "chartName": "Parameters that differ",
        "showDifferencesOnly": True,
        "showChangeFromBaseline": False,
        "baselineColumnUuid": "",
    },
}
RUNS_SHOWN = 20  # by a chart
MORE_SECTIONS = ("Model metrics", "System metrics")  # where MLflow itself puts the charts of all other metrics
TRAINING = ("loss", "validation_loss", "lr", "grad_norm", "images_per_second")
QUALITY = ("precision", "recall")
SAMPLES = ("grid", "trajectory")
FIGURES = ("real-and-samples", "neighbours", "controls")
ROWS = {"columns": 1, "cardHeight": 420}  # of images, which stand beside each other in a wide chart only


@dataclass(frozen=True)
class View:
    """One view, by what the pages call these things."""

    key: str
    title: str
    runs: str  # MLflow's search
    order: str = "attributes.start_time"
    ascending: bool = False
    columns: Sequence[str] = ()  # in this order
    sections: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # of charts
    table: bool = False  # shown first

    def address(self, base: str, experiment: str) -> str:
        """Where it is shown by the server at ``base``."""
        query = f"{PAGES}&compareRunsMode={'TABLE' if self.table else 'CHART'}&viewStateShareKey={OWN}{self.key}"
        return f"{base}/#/experiments/{experiment}/runs?{query}"

    def tag(self, created: int) -> tuple[str, str]:
        """Key and value of the tag; ``created``, in ms, decides its place in the pages' menu.

        Raises:
            UnveilError: if MLflow takes none so long, as that of very many runs.
        """
        state = base64.b64encode(zlib.compress(json.dumps(self._state()).encode(), 9)).decode()
        envelope = {"name": self.title, "createdAt": created, "updatedAt": created, "state": f"deflate;{state}"}
        if len(value := json.dumps(envelope)) > LONGEST:
            raise UnveilError(
                f"{self.title}: found {len(value):,} characters of a view, expected at most {LONGEST:,}, which is what "
                "MLflow keeps; name fewer runs"
            )
        return f"{TAG}{OWN}{self.key}", value

    def _state(self) -> dict[str, Any]:
        charts = [
            {"uuid": f"{section} {place}", "metricSectionId": section, "runsCountToCompare": RUNS_SHOWN, **chart}
            for section, found in self.sections.items()
            for place, chart in enumerate(found)
        ]
        sections = [
            {"uuid": name, "name": name, "display": name in self.sections, "isReordered": True, "deleted": False}
            | (ROWS if {"IMAGE", "DIFFERENCE"} & {chart["type"] for chart in self.sections.get(name, ())} else {})
            for name in (*self.sections, *MORE_SECTIONS)
        ]
        return {
            "searchFilter": self.runs,
            "orderByKey": self.order,
            "orderByAsc": self.ascending,
            "startTime": "ALL",
            "lifecycleFilter": "Active",
            "modelVersionFilter": "All Runs",
            "datasetsFilter": [],
            "selectedColumns": list(self.columns),
            "columnOrder": list(self.columns),
            # In pixels: the whole name of a distance, and of others enough to tell them.
            "columnWidths": {name: min(8 * len(name), 215 if "`f" in name else 115) for name in self.columns},
            "runsHiddenMode": "FIRST_20_RUNS",
            "compareRunCharts": charts,
            "compareRunSections": sections,
            "isAccordionReordered": True,
        }


def standing_views(evaluations: Sequence["Run"], previewed: int) -> list[View]:
    """The views that every project has.

    Args:
        evaluations: the newest runs of that stage, whose feature networks give the metrics to show.
        previewed: the step whose previews are shown first.
    """
    features = _features(evaluations)
    distances = [network.frechet for network in features]
    quality = [features[0].metric(name) for name in QUALITY]
    return [
        View(
            "distance",
            "Evaluations by distance",
            _stage("evaluate"),
            order=f"metrics.`{distances[0]}`",
            ascending=True,
            columns=[
                *_columns("metrics", *distances, *quality),
                *_columns("params", "sample.sampler", "sample.steps"),
                *_columns("metrics", "sample.nfe"),
                *_columns("params", "train.optimizer", "train.lr"),
                *_columns("metrics", "train.images_seen", *(f"{name}_fraction" for name in distances)),
            ],
            sections={"Numbers": _metrics("BAR", (distances[0], *quality)), "Images": _images(FIGURES)},
            table=True,
        ),
        View(
            "trainings",
            "Trainings as curves",
            _stage("train"),
            columns=[*_columns("metrics", *TRAINING), *_columns("params", "train.optimizer", "train.lr")],
            sections={"Training": _metrics("LINE", TRAINING)},
        ),
        View(
            "previews", "Previews over steps", _stage("train"), sections={"Previews": _images(["preview"], previewed)}
        ),
        View("samples", "Samples", _stage("sample"), sections={"Images": _images(SAMPLES)}),
    ]


def comparison(runs: Sequence["Run"], previewed: int) -> View:
    """The curves, numbers and images of some evaluations, and of the runs that they came from."""
    features = _features(runs)
    ids = [run.info.run_id for run in runs] + upstream(runs, "train", "sample")
    numbers = [*(network.frechet for network in features), *map(features[0].metric, QUALITY)]
    return View(
        "comparison",
        "Comparison",
        "attributes.run_id IN ({})".format(", ".join(f"'{name}'" for name in dict.fromkeys(ids))),
        sections={
            "Numbers": _metrics("BAR", numbers),
            "Parameters": [_chart("DIFFERENCE", compareGroups=["Parameters"])],
            "Images": _images((*SAMPLES, *FIGURES)),
            "Previews": _images(["preview"], previewed),
            "Training": _metrics("LINE", TRAINING),
        },
    )


def upstream(runs: Sequence["Run"], *stages: str) -> list[str]:
    """The ids of the runs that runs came from, as far as they are known."""
    found = [run.data.tags.get(f"unveil.upstream.{stage}") for run in runs for stage in stages]
    return [name for name in found if name is not None and re.fullmatch("[0-9a-f]{32}", name)]


def last_preview(client: "MlflowClient", trainings: Iterable[str]) -> int:
    """The last step of which the first of some runs has a preview; 0 if none has one."""
    for run_id in trainings:
        names = [file.path for file in client.list_artifacts(run_id, "images")]
        if steps := [int(found[1]) for name in names if (found := re.search(r"/preview\+step\+(\d+)\+", name))]:
            return max(steps)
    return 0


def compared_address(base: str, runs: Sequence["Run"]) -> str:
    """MLflow's page on the parameters and metrics of runs, side by side."""
    ids = json.dumps([run.info.run_id for run in runs], separators=(",", ":"))
    experiments = json.dumps(sorted({run.info.experiment_id for run in runs}), separators=(",", ":"))
    return f"{base}/#/compare-runs?runs={quote(ids)}&experiments={quote(experiments)}&{PAGES}"


def put(client: "MlflowClient", experiment: str, base: str, views: Iterable[View]) -> list[tuple[str, str]]:
    """Keep the views in the experiment, where they are not there already; their titles and addresses at ``base``."""
    found = client.get_experiment(experiment)
    shown = []
    for place, view in enumerate(views):
        key, value = view.tag((found.creation_time or 0) - place)
        if found.tags.get(key) != value:
            client.set_experiment_tag(experiment, key, value)
        shown.append((view.title, view.address(base, experiment)))
    return shown


def _features(runs: Sequence["Run"]) -> list[FeatureSet]:
    """The feature networks of evaluations, those of the newest first; Inception if there are none."""
    names = [name for run in runs for name in re.findall(r"[\w-]+", run.data.params.get("evaluate.features", ""))]
    return [FEATURE_SETS[name] for name in dict.fromkeys(names) if name in FEATURE_SETS] or [FEATURE_SETS["inception"]]


def _stage(name: str) -> str:
    return f"tags.`unveil.stage` = '{name}'"


def _columns(kind: str, *names: str) -> list[str]:
    return [f"{kind}.`{name}`" for name in names]


def _metrics(kind: str, names: Iterable[str]) -> list[dict[str, Any]]:
    return [_chart(kind, metricKey=name, selectedMetricKeys=[name]) for name in names]


def _images(keys: Iterable[str], step: int = 0) -> list[dict[str, Any]]:
    return [_chart("IMAGE", imageKeys=[key], step=step) for key in keys]


def _chart(kind: str, **facts: Any) -> dict[str, Any]:
    return {"type": kind, "deleted": False, "isGenerated": False, **CHART_DEFAULTS[kind], **facts}

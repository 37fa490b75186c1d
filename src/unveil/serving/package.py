"""A trained model as a folder that MLflow loads and serves where this package is not installed.

What is in it stands in docs/serving.md; :mod:`unveil.serving.pyfunc` is what MLflow runs.
"""

import json
import platform
import shutil
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin
from zipfile import ZIP_DEFLATED, ZipFile

import unveil
from unveil.averages import FOLDER
from unveil.errors import UnveilError
from unveil.files import atomic_directory, link_or_copy
from unveil.layout import MODELS
from unveil.model import CONFIG_FILE, WEIGHTS_FILE
from unveil.params import Sample, load_params, render
from unveil.serving.request import Request
from unveil.weights import parse_weights

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

PARAMS_FILE = "params.yaml"
CODE = Path("code/unveil.zip")
ENTRY = Path(__file__).with_name("pyfunc.py")
CODE_ENDINGS = (".py", ".yaml", ".j2")
ABOVE = ("cli", "interchange", "recipes", "run", "__main__.py")  # serving, which imports nothing of them
# What drawing imports; of pillow and the rest the versions that are installed here, which made the samples.
REQUIREMENTS = (
    "annotated-types",
    "filelock",
    "mlflow",
    "numpy",
    "pandas",
    "pillow",
    "pydantic",
    "pydantic-core",
    "rich",
    "ruamel.yaml",
    "safetensors",
    "torch",
)
EXAMPLE = [{"seed": 0, "first": 0}]
CONFIG = {"device": "auto", "bounded": True}
"""What ``mlflow.pyfunc.load_model(..., model_config=...)`` may change."""
KINDS = {int: "long", float: "double", bool: "boolean"}


def packaged(models: Path, into: Path) -> Path:
    """Make the folder ``into`` of the model in ``models``, or replace it; returns it.

    Large files are hard links where the file system has them. The averages are taken along if params.yaml beside
    ``models`` draws with one. A guide that is another model's folder is not: then no guide is usual.

    Raises:
        OSError: if there is no model, or no room.
    """
    from mlflow.models import Model
    from mlflow.pyfunc import add_to_model

    with atomic_directory(into) as folder:
        inner = folder / MODELS
        inner.mkdir()
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            link_or_copy(models / name, inner / name)
        params = None
        with suppress(UnveilError, OSError):  # without it the model draws as the previews of its training
            params = load_params(models.resolve().parent / PARAMS_FILE, fill=True)
        if params is not None:
            sample = _drawable(params.sample, (models / FOLDER).exists())
            if _averages_of(sample):
                shutil.copytree(models / FOLDER, inner / FOLDER, copy_function=link_or_copy)
            (folder / PARAMS_FILE).write_text(render(params.replace(sample=sample)), encoding="utf-8")
        _archive_code(folder / CODE)
        shutil.copyfile(ENTRY, folder / ENTRY.name)
        example = {"artifact_path": "input_example.json", "serving_input_path": "serving_input_example.json"}
        (folder / example["artifact_path"]).write_text(json.dumps(EXAMPLE))
        (folder / example["serving_input_path"]).write_text(json.dumps({"inputs": EXAMPLE}))
        (folder / "requirements.txt").write_text("".join(map(_requirement, REQUIREMENTS)))
        environment = {"python": platform.python_version(), "dependencies": ["-r requirements.txt"]}
        (folder / "python_env.yaml").write_text(json.dumps(environment))
        described = Model(
            signature=_signature(),
            saved_input_example_info={"type": "json_object", **example},
            metadata={"unveil": unveil.__version__},
        )
        add_to_model(
            described,
            "mlflow.pyfunc.loaders.code_model",
            code=str(CODE),
            python_env="python_env.yaml",
            model_config=CONFIG,
            model_code_path=ENTRY.name,
            artifacts={MODELS.name: {"path": MODELS.name, "uri": MODELS.name}},
        )
        described.save(str(folder / "MLmodel"))
    return into


def _archive_code(archive: Path) -> None:
    """Write the package's code as one file that Python imports from: stores take their time for each file."""
    package = Path(unveil.__file__).parent
    archive.parent.mkdir()
    with ZipFile(archive, "w", ZIP_DEFLATED, strict_timestamps=False) as packed:
        for file in sorted(package.rglob("*.*")):
            place = file.relative_to(package)
            if file.suffix in CODE_ENDINGS and place.parts[0] not in ABOVE:
                packed.write(file, package.name / place)
        facts = f"Metadata-Version: 2.1\nName: {package.name}\nVersion: {unveil.__version__}\n"
        packed.writestr(f"{package.name}-{unveil.__version__}.dist-info/METADATA", facts)


def _requirement(name: str) -> str:
    """The release that is installed, of which there may be several builds (2.14.1+cpu), as a line."""
    return f"{name}=={version(name).partition('+')[0]}\n"


def _drawable(sample: Sample, with_averages: bool) -> Sample:
    """The settings without a guide, or an average of the weights, that is not in the package."""
    if sample.guide is not None and parse_weights(sample.guide) is None:
        sample = sample.replace(guide=None, guidance=1.0)
    if _averages_of(sample) and not with_averages:
        sample = sample.replace(weights="ema", guide=None, guidance=1.0)
    return sample


def _averages_of(sample: Sample) -> bool:
    """Whether another average than the model's own draws or guides."""
    guide = parse_weights(sample.guide or "") if sample.guides else None
    return any(choice is not None and choice.kind != "ema" for choice in (sample.average, guide))


def _signature() -> "ModelSignature":
    """A row is a request; what it leaves out is as usual. For each image, a row comes back."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema
    from mlflow.types.schema import Array

    def kind(annotation: Any) -> Any:
        arguments = get_args(annotation)
        match get_origin(annotation):
            case origin if origin is tuple:
                return Array(kind(arguments[0]))
            case origin if origin is UnionType or hasattr(annotation, "__metadata__"):
                return kind(arguments[0])
            case origin if origin is Literal:
                return "string"
        return KINDS.get(annotation, "string")

    first = {key: Request.model_fields[key] for key in ("seed", "first", "count", "attributes")} | Request.model_fields
    inputs: list[Any] = [ColSpec(kind(field.annotation), key, required=False) for key, field in first.items()]
    outputs: list[Any] = [*(ColSpec("long", name) for name in ("row", "seed", "first")), ColSpec("binary", "image")]
    signature = ModelSignature(Schema(inputs), Schema(outputs))
    # MLflow then hands the rows on as they are, and the request is checked by its own rules: MLflow's would leave out
    # what has a wrong name, and refuse rows that do not say all the same.
    signature._is_signature_from_type_hint = True
    return signature

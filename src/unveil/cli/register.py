"""``unveil register``: a version of the registered model for what a run evaluated, and the champion among them."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unveil.cli.cards import find_card
from unveil.cli.find import RUN_MEANT, find_run, project_root
from unveil.errors import UnveilError
from unveil.evaluation.card.card import Card
from unveil.evaluation.metrics.metric import flat_metrics
from unveil.layout import MODELS
from unveil.run.registry import CHAMPION, HASH_TAG, RUN_TAG, WEIGHTS_TAG, Registry, is_better, shown
from unveil.run.store import Store
from unveil.weights import WEIGHTS, WeightsChoice, parse_weights

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

ALL = "all-snapshots"
SAMPLING = ("sampler", "steps", "nfe", "guidance", "seed")  # of the card's choices


def register(
    run: Annotated[str, typer.Argument(help=f"What was evaluated: {RUN_MEANT}.", metavar="RUN")],
    metric: Annotated[
        str | None, typer.Option(help="What decides on the champion; default: the metric that the card is about.")
    ] = None,
    name: Annotated[str, typer.Option(help="Of the registered model.")] = "unveil",
    weights: Annotated[
        str | None,
        typer.Option(help=f"Other weights than those evaluated: {WEIGHTS}; {ALL} makes MLflow models, no versions."),
    ] = None,
) -> None:
    """Make a model version of what a run evaluated, and `champion` if it is better than that beyond noise.

    `mlflow.pyfunc.load_model("models:/unveil@champion")` loads the champion.
    """
    wanted = None if weights is None else parse_weights(weights)
    if weights not in (None, ALL) and wanted is None:
        raise UnveilError(f"--weights: found {weights!r}, expected {WEIGHTS} | {ALL}; write one of them")
    found, store = find_run(run), Store.locate(Path.cwd())
    card = find_card(found.info.run_id)
    measured = parse_weights(str(card.choices.sampling.get("weights"))) or WeightsChoice()
    chosen = card.headline if metric is None else card.metric(metric)
    if chosen is None:
        there = ", ".join(each.name for each in card.metrics)
        raise UnveilError(f"--metric: found {metric!r}, expected one of its card's: {there}; write one of them")
    os.environ["MLFLOW_TRACKING_URI"] = store.uri  # MLflow's registry asks the store that is set, not the client's own
    with Registry.opened(store, name) as registry:
        model, choice = registry.model_of(found, card), wanted or measured
        if weights == ALL or choice.kind != "ema":
            made = averaged(registry, model, None if weights == ALL else choice)
            if weights == ALL:
                typer.echo("\n".join(f"{each}: models:/{model.model_id}" for each, model in made.items()))
                return
            model = made[choice]
        tags: dict[str, Any] = {WEIGHTS_TAG: choice, HASH_TAG: model.tags[HASH_TAG]}
        if choice == measured:
            sampling = card.choices.sampling
            tags |= {f"sampling.{key}": sampling[key] for key in SAMPLING if key in sampling} | flat_metrics([chosen])
        if commit := found.data.tags.get("git.commit"):
            tags["git.commit"] = commit
        version = registry.version_of(found, model, tags)
        number = f", {chosen.name} {shown(chosen)}" if choice == measured else ""
        typer.echo(f"version {version.version} of {name}: {version.source}, {choice} weights{number}")
        typer.echo(f"{CHAMPION}: {judged(registry, version, card, chosen.name if choice == measured else None)}")


def averaged(
    registry: Registry, model: "LoggedModel", choice: WeightsChoice | None
) -> "dict[WeightsChoice, LoggedModel]":
    """The LoggedModels of an average of a model's weights, or of all its snapshots.

    Raises:
        UnveilError: if there are no such.
    """
    from unveil.averages import Averages
    from unveil.model import WEIGHTS_FILE

    with registry.files_of(model, (project_root() or Path.cwd()) / MODELS) as files:
        stored = Averages.beside(files / WEIGHTS_FILE)
        choices = [WeightsChoice("snapshot", each.images) for each in stored.snapshots] if choice is None else [choice]
        if not choices:
            raise UnveilError(f"{files}: found no snapshots, expected some; train with train.ema_profiles")
        steps = [int(each.value) if each.kind == "snapshot" else stored.images for each in choices]
        return {
            each: registry.with_weights(model, files, each, step) for each, step in zip(choices, steps, strict=True)
        }


def judged(registry: Registry, version: "ModelVersion", card: Card, metric: str | None) -> str:
    """Give the alias to the version if that is right; returns who has it now, and why."""
    before = registry.champion()
    if before is not None and before.version == version.version:
        return f"version {version.version} is it already"
    better, why = before is None and metric is not None, "the first"
    if metric is None:
        why = f"these weights were not measured: `dvc exp run -S sample.weights={version.tags[WEIGHTS_TAG]}`"
    elif before is not None:
        try:
            better, why = is_better(card, find_card(before.tags.get(RUN_TAG) or str(before.run_id)), metric)
        except UnveilError as error:
            why = f"its card cannot be had ({error}); delete the alias in MLflow to begin anew"
    if better:
        registry.client.set_registered_model_alias(registry.name, CHAMPION, version.version)
        return f"version {version.version}: {why}"
    return f"{'none' if before is None else f'version {before.version} stays'}: {why}"

"""Stage 5: a classifier of attributes, which evaluate asks whether samples have what was asked for."""

from pathlib import Path
from typing import Annotated

import typer

from unveil.evaluation.oracle.facts import OracleFacts, write_empty
from unveil.layout import ORACLE, ORACLE_RECORD, ORACLE_WEIGHTS, PREPROCESS_RECORD, SHARDS
from unveil.params import load_params
from unveil.printing import unheard
from unveil.run.commands import one_line_errors
from unveil.run.stage import Run, stage

app = typer.Typer(add_completion=False)


@app.command()
def main(
    params: Annotated[Path, typer.Option(help="The file of parameters.", readable=False)] = Path("params.yaml"),
) -> None:
    """Train the oracle. Of a pipeline without attributes it is nothing, at once, and without a run of MLflow."""
    with unheard(), one_line_errors():
        names = load_params(params).train.attributes
        if not names:
            write_empty(ORACLE, ORACLE_WEIGHTS, ORACLE_RECORD)
            return
    with stage("oracle", params) as run:
        run.follow(PREPROCESS_RECORD)
        facts = trained(run, names)
        facts.save(ORACLE)
        for name, answers in (facts.attributes or {}).items():
            found = {"accuracy": answers.accuracy, "balanced_accuracy": answers.balanced_accuracy}
            run.log_metrics({f"{key}_{name}": value for key, value in found.items()})
            run.say(
                f"{name}: {answers.accuracy:.2%} of held-out images right, {answers.balanced_accuracy:.2%} balanced"
            )
        run.log_metrics({"accuracy": facts.accuracy or 0, "balanced_accuracy": facts.balanced_accuracy or 0})
        run.log_artifact(ORACLE)
        run.write_record(ORACLE_RECORD)


def trained(run: Run, names: tuple[str, ...]) -> OracleFacts:
    """Train it and write its weights. What this needs takes seconds to import, in vain where there is nothing to do."""
    from unveil.data.shards import ShardIndex, verify
    from unveil.evaluation.oracle.classifier import HELD_OUT, learn
    from unveil.precision import resolve_device, set_tf32

    index, settings = ShardIndex.load(SHARDS), run.params.oracle
    verify(SHARDS, ["train", HELD_OUT])
    name = f"{index.source}-{index.image_size}-{index.protocol}"
    run.add_input(SHARDS.as_posix(), index.digest(), dataset=name, context="oracle")
    device = resolve_device(settings.device)
    set_tf32(False, device)
    return learn(SHARDS, names, settings, device, ORACLE_WEIGHTS, run.say).facts


if __name__ == "__main__":
    app()

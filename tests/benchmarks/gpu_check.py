"""What a GPU does with this project, in a few minutes: one table, which says of each step what came of it.

    PYTHONPATH=src python -m tests.benchmarks.gpu_check [--minutes 8] [--output FOLDER]

in the repository's root, or ``make gpu-check``. It needs PyTorch, torchvision, safetensors, pydantic and pytest, and no
network. These are its steps:

- the tests marked ``gpu``
- trainings of the shape of celeba64-ddpm and celeba64-edm on random images, as many as CelebA's, in bf16 and fp16, as
  they are and compiled
- the trainings of diffusers and denoising-diffusion-pytorch, where these are installed
- Muon's step beside Adam's
- a training that is killed and resumed
- sampling, and the extraction of features

``--minutes`` is kept: an eightieth of it is what each figure is measured for, and what there was no time for is said to
be so. A step that fails does not end the others. ``gpu-check.json`` and ``gpu-check.md`` are written after every step.
The exit status is 1 if a step failed, or if there is no GPU.

``--device cpu`` tries out all of it, small, without one: its figures say nothing of the speed.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

from tests.benchmarks.gpu_steps import Figure, LeftOut, Setting, State, Step, about_machine, start_method, steps

from unveil.files import write_json, write_text

IMAGES = {"cuda": 162_770, "cpu": 64}  # of CelebA's train split; enough to try
PARTS = 80  # of the time, one of which a figure is measured for
FEWEST_PARTS = 2  # that a step is begun with


@dataclass(frozen=True)
class Outcome:
    """What came of a step.

    Attributes:
        step: its name.
        state: ``left out`` if it cannot be made here; ``no time`` if it was not begun or not ended for the limit.
        reason: in one line, unless it is done.
        figures: all that were measured, also before it failed.
        seconds: that it took.
    """

    step: str
    state: State
    reason: str = ""
    figures: list[Figure] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        said = [f"{self.state}: {self.reason}"] if self.state != "done" else []
        return "; ".join([*said, *map(str, self.figures)])


class Asked:
    """A process of its own that is asked for values, one after the other, and how it ended.

    Args:
        work: yields the values.
        seconds: that it may take.
        method: how it starts.
    """

    def __init__(
        self, work: Callable[[], Iterable[Any]], seconds: float, method: Literal["fork", "spawn"] = "fork"
    ) -> None:
        self.values: list[Any] = []
        self.state: State = "failed"
        self.reason = ""
        start = time.monotonic()
        context: Any = get_context(method)
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_answer, args=(work, sender))
        process.start()
        sender.close()
        try:
            while receiver.poll(max(start + seconds - time.monotonic(), 0)):
                kind, value = receiver.recv()
                if kind == "value":
                    self.values.append(value)
                else:
                    self.state, self.reason = kind, value
                    break
            else:
                self.state, self.reason = "no time", f"stopped after {seconds:.0f} s"
        except EOFError:
            process.join()
            self.reason = f"its process ended with status {process.exitcode}"
        finally:
            if process.is_alive():
                _end(process.pid)
            process.join()
        self.seconds = time.monotonic() - start


def _answer(work: Callable[[], Iterable[Any]], sender: Any) -> None:
    """In the process: send the values, and what came of it."""
    os.setsid()  # what it starts ends with it
    try:
        for value in work():
            sender.send(("value", value))
    except LeftOut as reason:
        sender.send(("left out", str(reason)))
    except BaseException as error:
        sender.send(("failed", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"))
        raise
    else:
        sender.send(("done", ""))


def _end(process: int) -> None:
    """End a process that leads a group, and its group."""
    try:
        os.killpg(process, signal.SIGKILL)
    except ProcessLookupError:  # it ended in this moment, or has not come to lead
        os.kill(process, signal.SIGKILL)


def outcomes(chosen: Iterable[Step], setting: Setting, minutes: float) -> Iterator[Outcome]:
    """Make steps, within the time."""
    whole = 60 * minutes
    end = time.monotonic() + whole
    for step in chosen:
        left = end - time.monotonic()
        if left < FEWEST_PARTS * whole / PARTS:
            yield Outcome(step.name, "no time", "not begun")
            continue
        yield _outcome(step, setting, left, step.share * whole)


def _outcome(step: Step, setting: Setting, left: float, share: float) -> Outcome:
    asked = Asked(partial(step.measure, setting), min(left, share), setting.method)
    state = step.late if asked.state == "no time" and share < left else asked.state
    return Outcome(step.name, state, asked.reason, asked.values, asked.seconds)


def choose(every: list[Step], options: argparse.Namespace) -> list[Step]:
    """The shards, which the others read, and the steps that are asked for."""
    shards, *others = every
    return [
        shards,
        *(step for step in others if options.only in step.name and not (options.skip and options.skip in step.name)),
    ]


def markdown(about: dict[str, str], found: list[Outcome]) -> str:
    """The report's table, one line a step."""
    head = ", ".join(f"{name} {value}" if name != "device" else value for name, value in about.items())
    lines = [head, "", "| step | result |", "| --- | --- |"]
    lines += [f"| {outcome.step} | {str(outcome).replace('|', '/')} |" for outcome in found]
    return "\n".join(lines) + "\n"


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description="Measure what a GPU does with this project.")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu tries out everything, small")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all of it; 8, if not given")
    parser.add_argument("--seconds", type=float, help="that each figure is measured for; an eightieth of the minutes")
    parser.add_argument("--only", default="", help="only the steps whose name has this in it, and the shards")
    parser.add_argument("--skip", help="not the steps whose name has this in it")
    parser.add_argument("--images", type=int, help="of the shards; as many as CelebA's, if not given")
    parser.add_argument("--output", type=Path, default=Path(".unveil/gpu-check"), help="folder of the two files")
    options = parser.parse_args()
    options.images = options.images or IMAGES[options.device]
    options.seconds = 60 * options.minutes / PARTS if options.seconds is None else options.seconds
    return options


def main() -> int:
    """Make the steps, print and write what came of them; 1 if one failed, or if there is no GPU."""
    options = parse()
    start = time.monotonic()
    if options.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    # This process leaves the GPU alone: those that it forks could not use it otherwise.
    method = start_method()
    asked = Asked(partial(about_machine, options.device), 60, method)
    if asked.state != "done":
        print(f"gpu-check: {asked.reason}", file=sys.stderr)
        return 1
    about: dict[str, str] = asked.values[0]
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    found: list[Outcome] = []
    minutes = options.minutes - (time.monotonic() - start) / 60
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(options.device, Path(folder), options.seconds, options.images, method)
        for outcome in outcomes(choose(steps(setting), options), setting, minutes):
            print(f"{outcome.step}: {outcome} ({outcome.seconds:.0f} s)", flush=True)
            found.append(outcome)
            facts = {
                "machine": about,
                "minutes": options.minutes,
                "images": options.images,
                "steps": [asdict(outcome) for outcome in found],
            }
            write_json(options.output / "gpu-check.json", facts)
            write_text(options.output / "gpu-check.md", markdown(about, found))
    print(f"{options.output}: gpu-check.json, gpu-check.md; {time.monotonic() - start:.0f} s")
    return int(any(outcome.state == "failed" for outcome in found))


if __name__ == "__main__":
    sys.exit(main())

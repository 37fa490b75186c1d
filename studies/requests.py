"""Faces on request: how many samples have what they were asked for, and how well images come back from their noise.

One attribute at a time is told, yes or no, and the rest is not; all requests start from the same noise. The oracle says
what samples show. Each point is kept as soon as it is measured: a study that was stopped goes on.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from unveil.data.batches import load_split
from unveil.data.pixels import to_float, to_uint8
from unveil.data.shards import ShardIndex
from unveil.diffusion.config import Guidance, Sampler
from unveil.diffusion.editing import edit, follows_ode
from unveil.diffusion.sampling import NotDrawn, batches
from unveil.errors import UnveilError
from unveil.evaluation.oracle.classifier import HELD_OUT, Oracle
from unveil.evaluation.oracle.facts import MEND
from unveil.files import atomic_path, write_json, write_text
from unveil.generation import asking, generate, load_guided
from unveil.layout import ORACLE, ORACLE_WEIGHTS
from unveil.ledger import Ledger
from unveil.model import ModelConfig, load_denoiser
from unveil.networks.condition import told
from unveil.params import load_params
from unveil.precision import autocast, resolve_device, resolve_precision, set_tf32
from unveil.progress import Say
from unveil.serving.studio import checked
from unveil.workers import workers

INVERSION_STEPS = 100  # with which little should be lost
WORDS = {"yes": "", "no": "-"}  # what is told of an attribute
COLORS = {"yes": "#0072b2", "no": "#d55e00"}


@dataclass(frozen=True)
class AskedFor:
    """Samples that were told one attribute, "yes" or "no", and how many have it, as the oracle says."""

    attribute: str
    word: str
    have: int


@dataclass(frozen=True)
class Returned:
    """Held-out images that went to noise and back: of each its PSNR in dB, and the network evaluations."""

    config: Sampler
    nfe: int
    psnr: list[float]


@dataclass
class RequestStudy:
    """A conditional model with its oracle, and the points so far, in ``asked.json`` and ``returned.json`` of ``out``.

    Args:
        models: folder of the trained model.
        oracle: folder of the oracle.
        shards: folder of the shards that both were trained on.
        params: the file whose ``sample:`` says how to draw.
        out: folder of the results.
        guidance: scale.
        images: samples of each request.
        real: held-out images that go to noise and back.
        say: takes lines for the user.

    Raises:
        UnveilError: if something is missing, the model is told no attributes, or these do not belong together.
    """

    models: Path
    oracle: Path
    shards: Path
    params: Path
    out: Path
    guidance: float
    images: int
    real: int
    say: Say

    def __post_init__(self) -> None:
        params, self.model = load_params(self.params), ModelConfig.load(self.models)
        self.model.check_diffusion(params.train.diffusion, self.models)
        self.sample, self.names = params.sample, self.model.network.attributes
        self.sampler = self.sample.only(Sampler)
        self.device = resolve_device(self.sample.device)
        set_tf32(False, self.device)
        precision = resolve_precision(self.sample.precision, self.device)
        self.how: dict[str, Any] = {"context": lambda: autocast(precision, self.device)}
        self.judge = self._judge()
        guidance = self.sample.only(Guidance).replace(guidance=self.guidance)
        self.denoiser, guide = load_guided(self.models, self.device, self.sample.average, guidance)
        facts = self.model.facts(self.models, self.sample.average) | {"seed": self.sample.seed, "precision": precision}
        drawn = {**self.sampler.read_values(), "guidance": self.guidance, **guide, "images": self.images}
        oracle = {"oracle": self.judge.facts.weights_sha256}
        self.asked = Ledger(self.out / "asked.json", facts | drawn | oracle, AskedFor)
        self.returned = Ledger(self.out / "returned.json", facts | {"real": self.real}, Returned)

    def _judge(self) -> Oracle:
        """The oracle, if it knows what the model is told, and both are of these shards."""
        path, index = self.oracle / ORACLE.name, ShardIndex.load(self.shards)
        if not self.names:
            raise UnveilError(f"{self.models}: a model that is told no attributes; train one with train.attributes")
        judge = Oracle.load(path, self.oracle / ORACLE_WEIGHTS.name, self.device)
        if judge is None or not set(self.names) <= set(judge.facts.names):
            raise UnveilError(f"{path}: does not know all of {', '.join(self.names)}, as the model does; {MEND}")
        for file, shards in ((path, judge.facts.shards), (self.models, self.model.data.get("shards"))):
            if shards != index.digest():
                raise UnveilError(f"{file}: of shards {str(shards)[:12]}, but {self.shards} has {index.digest()[:12]}")
        if self.real > (there := index.num_images(HELD_OUT)):
            raise UnveilError(
                f"--real: found {self.real}, but the {HELD_OUT} split of {self.shards} has {there} images"
            )
        return judge

    def run(self) -> None:
        """Measure what is not known yet. Raises UnveilError, in one line, for what cannot be drawn."""
        known = {(point.attribute, point.word) for point in self.asked.points}
        try:
            for name, word in ((name, word) for name in self.names for word in WORDS if (name, word) not in known):
                self.asked.add(point := self._ask(name, word))
                self.say(f"{name}, asked for {word}: {self.share(point)['text']} have it")
            for case in inversions(self.sampler):
                if all(case != point.config for point in self.returned.points):
                    self.returned.add(back := self._return(case))
                    self.say(f"to noise and back, {case.sampler}, {case.steps} steps: {fmean(back.psnr):.1f} dB")
        except NotDrawn as error:
            raise UnveilError(f"{self.models}: {error}; train again, or set sample.precision to fp32") from None

    def _ask(self, name: str, word: str) -> AskedFor:
        size, seed = self.model.network.image_size, self.sample.seed
        parts = batches(self.images, self.sample.batch_size)
        tell = asking(told([WORDS[word] + name], self.names)[None], seed, self.device)
        with workers(self.device, self.sample.batch_size) as threads:
            how: dict[str, Any] = {**self.how, "tell": tell, "workers": threads}
            images, _ = generate(self.denoiser, self.sampler, seed, (3, size, size), parts, self.say, **how)
        says = self.judge.says(images)[:, self.judge.facts.names.index(name)]
        return AskedFor(name, word, int(says.sum()))

    def _return(self, case: Sampler) -> Returned:
        """Up and down, told nothing and without a guide."""
        denoiser = load_denoiser(self.models, self.device, self.sample.average)
        given, errors = load_split(self.shards, HELD_OUT, self.real).images, []
        for ids in batches(self.real, self.sample.batch_size):
            part = given[ids.start : ids.stop]
            images = to_float(part).to(self.device)
            steps = edit(denoiser, case, self.sample.seed, images, condition=None, ids=ids, **self.how)
            *_, last = checked(steps, ids)
            errors.append((to_uint8(last.x).double() - part.double()).square().flatten(1).mean(dim=1))
        least = 1 / given[0].numel()  # one value is off by one, where none is: a number that JSON has
        psnr = 20 * torch.log10(255 / torch.cat(errors).clamp_min(least).sqrt())
        return Returned(case, last.nfe, [round(value, 2) for value in psnr.tolist()])

    def share(self, point: AskedFor) -> dict[str, Any]:
        """Of the samples of a request, those that have the attribute, with Wilson's interval of 95 %."""
        from scipy.stats import binomtest

        ends, share = binomtest(point.have, self.images).proportion_ci(0.95, "wilson"), point.have / self.images
        text = f"{100 * share:.1f} % ({100 * ends.low:.1f} to {100 * ends.high:.1f})"
        return {"share": share, "low": ends.low, "high": ends.high, "text": text}

    def results(self) -> dict[str, Any]:
        """All that was found, as JSON has it."""
        found = {f"{point.attribute} {point.word}": self.share(point) for point in self.asked.points}
        known, rows = self.judge.facts.attributes or {}, {}
        for name in self.names:
            oracle = {"accuracy": known[name].accuracy, "yes": known[name].yes, "no": known[name].no}
            rows[name] = {**{word: found[f"{name} {word}"] for word in WORDS}, "oracle": oracle}
        back = [
            {"mean": fmean(point.psnr), "least": min(point.psnr), "nfe": point.nfe, **point.config.read_values()}
            for point in self.returned.points
        ]
        ends = {word: end(row[word]["share"] for row in rows.values()) for word, end in (("yes", min), ("no", max))}
        oracle_mean = fmean(row["oracle"]["accuracy"] for row in rows.values())
        return {
            "attributes": rows,
            "least_yes": ends["yes"],
            "most_no": ends["no"],
            "oracle_accuracy": oracle_mean,
            "back": back,
        }


def inversions(sampler: Sampler) -> list[Sampler]:
    """What goes to noise and back: the sampler with many steps and with its own, and the ddim of ``unveil edit``.

    Those that draw noise on their way are left out.
    """
    ddim = sampler.replace(sampler="ddim", steps=INVERSION_STEPS, eta=0.0, s_churn=0.0)
    cases = dict.fromkeys([sampler.replace(steps=INVERSION_STEPS), sampler, ddim])
    return [case for case in cases if follows_ode(case)]


def percent(share: float | None) -> str:
    """A share for people; None is one of nothing."""
    return "none" if share is None else f"{100 * share:.1f} %"


def report(study: RequestStudy) -> str:
    """The tables as Markdown."""
    found = study.results()
    lines = ["| attribute | asked for: has it | asked not: has it | oracle on real: yes, no | accuracy |"]
    lines.append("| --- | ---: | ---: | ---: | ---: |")
    for name, row in found["attributes"].items():
        yes, no, accuracy = (percent(row["oracle"][key]) for key in ("yes", "no", "accuracy"))
        lines.append(f"| `{name}` | {row['yes']['text']} | {row['no']['text']} | {yes}, {no} | {accuracy} |")
    back = ["| to noise and back | steps | evaluations | mean PSNR | least |", "| --- | ---: | ---: | ---: | ---: |"]
    for row in found["back"]:
        psnr = f"{row['mean']:.1f} dB | {row['least']:.1f} dB"
        back.append(f"| {row['sampler']} | {row['steps']} | {row['nfe']} | {psnr} |")
    return "\n\n".join(
        [
            f"One attribute told, the rest not; guidance {study.guidance:g}; {study.images:,} samples of each request, "
            f"with Wilson's intervals of 95 %; {study.sampler.sampler}, {study.sampler.steps} steps, seed "
            f"{study.sample.seed}. The last columns are what the oracle says of held-out images.",
            "\n".join(lines),
            f"Asked for, {percent(found['least_yes'])} or more have it; asked not, {percent(found['most_no'])} or "
            f"fewer. The oracle's mean accuracy is {percent(found['oracle_accuracy'])}.",
            f"{study.real} images of the {HELD_OUT} split, told nothing, without a guide:",
            "\n".join(back),
        ]
    )


def write_report(study: RequestStudy) -> str:
    """Write ``requests.md``, ``requests.json`` and ``requests.png`` into the study's folder; return the text."""
    text, found = report(study), study.results()
    write_text(study.out / "requests.md", text + "\n")
    write_json(study.out / "requests.json", found)
    with atomic_path(study.out / "requests.png") as temporary:
        draw(found["attributes"], study.guidance).savefig(temporary, format="png")
    return text


def draw(rows: Mapping[str, Any], guidance: float) -> Figure:
    """Bars of yes and no for each attribute, with their intervals; ticks are what the oracle says of real images."""
    figure = Figure(figsize=(7.5, 1.3 + 0.5 * len(rows)), dpi=110, layout="constrained")
    axes = figure.subplots()
    for number, (word, color) in enumerate(COLORS.items()):
        places = [place + 0.36 * (number - 0.5) for place in range(len(rows))]
        shares = [row[word] for row in rows.values()]
        values = [share["share"] for share in shares]
        ends = [[one["share"] - one["low"] for one in shares], [one["high"] - one["share"] for one in shares]]
        style = {"elinewidth": 0.9, "capsize": 2, "ecolor": "#222222"}
        axes.barh(places, values, 0.32, xerr=ends, color=color, error_kw=style, label=f"asked for {word}")
        real = [row["oracle"][word] for row in rows.values()]
        said = [math.nan if share is None else share if word == "yes" else 1 - share for share in real]
        label = "real images, by the oracle" if number else None
        axes.plot(said, places, linestyle="none", marker="D", mfc="white", mec="#222222", markersize=4, label=label)
    axes.set_yticks(range(len(rows)), list(rows), fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.02)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel(f"samples that have the attribute, guidance {guidance:g}")
    axes.grid(axis="x", alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(fontsize=8, frameon=False, loc="outside upper center", ncols=3)
    return figure

"""The figures of REPORT.md that show theory, drawn with the project's own paths, objectives, grids and samplers.

``python -m studies.illustrations [--out docs/figures]`` draws them anew, the same on every run.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from math import log, log10, pi, sqrt
from pathlib import Path
from statistics import NormalDist
from typing import Annotated, TypeAlias

import torch
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator
from PIL import Image
from torch import Tensor

from unveil.diffusion import grids, samplers
from unveil.diffusion.closed_form import Mixture, ring
from unveil.diffusion.objectives import (
    P2,
    EDMObjective,
    FlowMatching,
    Likelihood,
    MinSNR,
    Objective,
    Simple,
)
from unveil.diffusion.paths import EDM, VE, DiscreteVP, Flow, NoisePath, SubVP, VPCosine, VPLinear, VPSigmoid
from unveil.diffusion.samplers import Churn, NoiseSource, SamplerFunction, Step
from unveil.files import atomic_path

FIGURES = Path("docs/figures")
DPI = 110
COLORS = 128  # of a figure's palette: they are lines on flat grounds, and a palette makes the files small
BLUE, ORANGE, GREEN, PURPLE, BLACK = "#0072b2", "#d55e00", "#009e73", "#aa4499", "#222222"
SKY, YELLOW, RED = "#56b4e9", "#c9a227", "#882255"

SIGMA_MIN, SIGMA_MAX = 0.02, 20.0
"""Noise levels between which the samplers of the figures go, before the last interval to 0."""

LINE = Mixture([0.35, 0.65], [-0.9, 0.5], [0.12, 0.2])
"""On the line, with components that a sampler must tell apart."""

RING = ring([0.3, 0.1, 0.25, 0.1, 0.25], radius=1.2, std=0.1)
"""The same in the plane."""

Solver: TypeAlias = Callable[[Tensor, Tensor], Iterator[Step]]
"""Runs a sampler on a grid of sigmas from x."""


def log_sigma_density(objective: Objective) -> tuple[Tensor, Tensor]:
    """Density of ln(sigma) in training: noise levels and the density at each, float64, rising in sigma.

    Raises:
        TypeError: for an objective whose density is not known here.
    """
    if isinstance(objective, Likelihood):
        least, greatest = objective.path.sigma_range()
        sigmas = torch.logspace(log10(least), log10(greatest), 401, dtype=torch.float64)
        return sigmas, torch.full_like(sigmas, 1 / float((sigmas[-1] / sigmas[0]).log()))
    if isinstance(objective, Simple):
        return _density_of_uniform_times(objective.path)
    if isinstance(objective, FlowMatching) and objective.times == "uniform":
        return _density_of_uniform_times(Flow())
    if isinstance(objective, EDMObjective):
        mean, std = objective.p_mean, objective.p_std
    elif isinstance(objective, FlowMatching):
        mean, std = objective.logit_mean, objective.logit_std  # ln(sigma) is the logit of t
    else:
        raise TypeError(f"no density for {type(objective).__name__}")
    normal = torch.linspace(-5, 5, 401, dtype=torch.float64)
    return (mean + std * normal).exp(), (-normal.square() / 2).exp() / (std * sqrt(2 * pi))


def quantiles(mixture: Mixture, count: int) -> Tensor:
    """``count`` values that cut a clean mixture on the line into equal parts: float64 [count], rising."""
    reach = 8 * float(mixture.covariances.max()) ** 0.5
    ends = float(mixture.means.min()) - reach, float(mixture.means.max()) + reach
    x = torch.linspace(*ends, 200_001, dtype=torch.float64)
    total = torch.cumulative_trapezoid(mixture.log_density(x).exp(), x)
    wanted = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return x[1:][torch.searchsorted(total, wanted)]


def wasserstein(samples: Tensor, mixture: Mixture) -> float:
    """Mean distance (Wasserstein-1) between samples [N] and the clean mixture."""
    return float((samples.sort().values - quantiles(mixture, len(samples))).abs().mean())


def normal_quantiles(count: int) -> Tensor:
    """``count`` values that stand for a unit normal, evenly spread in probability: float64 [count]."""
    normal = NormalDist()
    return torch.tensor([normal.inv_cdf((i + 0.5) / count) for i in range(count)], dtype=torch.float64)


def solution_errors(solver: Solver, mixture: Mixture, steps: Sequence[int]) -> list[float]:
    """Median error of a solver of the probability-flow ODE at ``SIGMA_MIN``, for numbers of steps.

    Over 200 starts; the reference is Heun's method with 4096 steps. The median, because a start that lies
    between two components ends in the wrong one for a while, and that is no matter of order.
    """
    start, exact = _reference(mixture)
    return [float((_before_last(solver, start, count) - exact).abs().median()) for count in steps]


def ddim_solver(mixture: Mixture) -> Solver:
    """DDIM with eta = 0 on the mixture."""
    return lambda sigmas, x: samplers.ddim(mixture.denoise, sigmas, x, _no_noise)


def heun_solver(mixture: Mixture) -> Solver:
    """Heun's method on the mixture."""
    return lambda sigmas, x: samplers.heun(mixture.denoise, sigmas, x, _no_noise)


def dpmpp_2m_solver(mixture: Mixture) -> Solver:
    """DPM-Solver++(2M) on the mixture."""
    return lambda sigmas, x: samplers.dpmpp_2m(mixture.denoise, sigmas, x, _no_noise)


def ddpm_solver(mixture: Mixture, seed: int) -> Solver:
    """DDPM with the posterior's variance on the mixture."""

    def solve(sigmas: Tensor, x: Tensor) -> Iterator[Step]:
        return samplers.ddpm(mixture.denoise, sigmas, x, _noise_like(x, seed))

    return solve


@dataclass(frozen=True)
class _Line:
    """How one curve is drawn and named."""

    name: str
    color: str
    style: str | tuple[int, tuple[float, ...]] = "-"


def _paths() -> list[tuple[_Line, NoisePath, Tensor]]:
    """The noise paths, and noise levels along each: at 401 equal steps of its own time."""
    shown: list[tuple[_Line, NoisePath]] = [
        (_Line("vp-linear, T = 1000", BLUE), VPLinear()),
        (_Line("vp-linear, T = 500", BLUE, "--"), VPLinear(500)),
        (_Line("vp-cosine", SKY), VPCosine()),
        (_Line("vp-sigmoid", PURPLE), VPSigmoid()),
        (_Line("sub-vp", YELLOW, (0, (4, 2))), SubVP()),
        (_Line("ve", RED), VE()),
        (_Line("flow", GREEN), Flow()),
    ]
    curves = []
    for line, path in shown:
        times = torch.linspace(*path.t_range(), 401, dtype=torch.float64)
        curves.append((line, path, path.sigma(times)))
    levels = grids.karras(401, *EDM().sigma_range())[:-1].flip(0)  # time is sigma itself, so its sampler's steps
    return [*curves, (_Line("edm, along its sampler's grid", ORANGE), EDM(), levels)]


def draw_paths() -> Figure:
    """The noise paths side by side: alpha, s and sigma over normalised time."""
    figure = Figure(figsize=(10, 4), dpi=DPI, layout="constrained")
    signal, noise, level = figure.subplots(1, 3)
    for line, path, sigma in _paths():
        time, alpha = torch.linspace(0, 1, len(sigma), dtype=torch.float64), path.alpha(sigma)
        for axes, values in ((signal, alpha), (noise, alpha * sigma), (level, sigma)):
            axes.plot(time, values, color=line.color, linestyle=line.style, label=line.name, linewidth=1.5)
    for axes, title in ((signal, "α: share of the image"), (noise, "s: share of the noise"), (level, "σ = s / α")):
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("time, from end to end of training", fontsize=9)
        axes.set_xlim(0, 1)
        _tidy(axes)
    signal.set_ylim(-0.03, 1.1)
    signal.text(0.62, 1.03, "ve and edm", color=ORANGE, fontsize=8)
    signal.text(0.03, 0.06, "sub-vp: as vp-linear,\nless noise", color=YELLOW, fontsize=8)
    noise.set_ylim(-0.03, 1.5)
    noise.text(0.6, 1.4, "ve: s = σ, to 100", color=RED, fontsize=8, va="center")
    noise.text(0.42, 1.4, "edm: s = σ, to 80", color=ORANGE, fontsize=8, va="center", ha="right")
    level.set_yscale("log")
    level.set_ylim(1e-3, 1e5)
    for timesteps, height in ((1000, 400), (500, 0.6)):
        last = VPLinear(timesteps).sigma_range()[1]
        level.annotate(
            f"{last:.1f}",
            (1, last),
            (0.86, height),
            color=BLUE,
            fontsize=8,
            ha="right",
            va="center",
            arrowprops={"arrowstyle": "-", "color": BLUE, "linewidth": 0.6},
        )
    figure.legend(*level.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def _objectives() -> list[tuple[_Line, Objective]]:
    path = VPLinear()
    return [
        (_Line("simple", BLUE), Simple(path)),
        (_Line("min-snr, γ = 5", SKY), MinSNR(path)),
        (_Line("p2, k = γ = 1", PURPLE), P2(path)),
        (_Line("likelihood", BLACK, "-."), Likelihood(path)),
        (_Line("edm, ln σ = −1.2 + 1.2 n", ORANGE), EDMObjective()),
        (_Line("flow, t = sigmoid(n)", GREEN), FlowMatching()),
        (_Line("flow, t uniform", GREEN, "--"), FlowMatching(times="uniform")),
    ]


def draw_objectives() -> Figure:
    """The objectives: where they train, what an error counts there, and both together."""
    levels = torch.logspace(-2.5, 2.5, 401, dtype=torch.float64)
    figure = Figure(figsize=(10, 4), dpi=DPI, layout="constrained")
    density, weight, both = figure.subplots(1, 3)
    for line, objective in _objectives():
        look = {"color": line.color, "linestyle": line.style, "linewidth": 1.5, "label": line.name}
        sigmas, values = log_sigma_density(objective)
        if not isinstance(objective, MinSNR | P2):  # these draw as simple does
            density.plot(sigmas, values, **look)
        weight.plot(levels, objective.weight(levels), **look)
        emphasis = values * objective.weight(sigmas) * sigmas.square()
        inside = (sigmas > levels[0]) & (sigmas < levels[-1])
        both.plot(sigmas, emphasis / emphasis[inside].max(), **look)
    density.set_title("density of ln σ in training", fontsize=11)
    weight.set_title("weight λ(σ) of |D − x₀|²", fontsize=11)
    both.set_title("density · λ · σ², largest value 1", fontsize=11)
    both.set_ylim(0, 1.14)
    density.set_ylim(0, 0.42)
    density.text(0.0036, 0.113, "likelihood", fontsize=8, color=BLACK)
    density.text(6.5, 0.225, "simple, min-snr\nand p2 draw alike", fontsize=8, color=BLUE, va="top")
    both.text(0.0036, 1.03, "likelihood: the bound", fontsize=8, color=BLACK)
    weight.set_yscale("log")
    weight.set_ylim(1e-4, 3e5)
    weight.text(0.035, 6e3, "simple, likelihood: 1/σ²", color=BLUE, fontsize=8)
    for axes in (density, weight, both):
        axes.set_xscale("log")
        axes.set_xlim(10**-2.5, 10**2.5)
        axes.set_xlabel("σ", fontsize=9)
        _tidy(axes)
    figure.legend(*weight.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def draw_samplers() -> Figure:
    """Three samplers on a mixture, at the same number of network evaluations, with what they end in."""
    many = SIGMA_MAX * torch.randn(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows: list[tuple[str, str, int, Solver]] = [
        ("ddim, η = 0", BLUE, 23, ddim_solver(LINE)),
        ("heun", GREEN, 12, heun_solver(LINE)),
        ("ddpm", ORANGE, 23, ddpm_solver(LINE, 1)),
    ]
    figure = Figure(figsize=(10, 4.1), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, 6, sharey=True, width_ratios=[3, 1] * 3)
    for number, (name, color, steps, solver) in enumerate(rows):
        axes, margin = panels[2 * number], panels[2 * number + 1]
        sigmas = grids.karras(steps, SIGMA_MIN, SIGMA_MAX)
        places = _places(sigmas)
        start = SIGMA_MAX * normal_quantiles(6 if name == "ddpm" else 14)
        _draw_marginals(axes, LINE)
        if name != "ddpm":
            fine = grids.karras(256, SIGMA_MIN, SIGMA_MAX)
            exact = _scaled(fine, [start] + [step.x for step in heun_solver(LINE)(fine, start)])
            axes.plot(_places(fine), exact, color=BLACK, linewidth=0.5, alpha=0.65)
        walk = list(solver(sigmas, start))
        states = _scaled(sigmas, [start] + [step.x for step in walk])
        axes.plot(places, states, color=color, linewidth=0.9, marker="o", markersize=2)
        axes.set_title(f"{name}: {walk[-1].nfe} evaluations", fontsize=11)
        *_, last = solver(sigmas, many)
        _draw_result(margin, LINE, last.x, color)
        axes.set_xlim(float(_places(sigmas)[0]), float(places[-1]))
        ticks = [20.0, 5.0, 1.0, 0.2, 0.05, 0.0]
        axes.set_xticks([float(place) for place in _places(torch.tensor(ticks))], [f"{tick:g}" for tick in ticks])
        axes.set_xlabel("σ", fontsize=9)
        _tidy(axes)
        axes.grid(False)
    panels[0].set_ylabel("x / √(1 + σ²)", fontsize=9)
    panels[0].set_ylim(-2.3, 2.3)
    return figure


def draw_trajectories() -> Figure:
    """Every sampler on a mixture in the plane, at about the same number of network evaluations."""
    steps = 24
    churn = Churn(s_churn=0.2 * steps, s_tmin=0.05, s_tmax=10.0)
    shown: list[tuple[str, str, int, SamplerFunction]] = [
        ("ddim, euler", BLUE, steps, samplers.euler),
        ("heun", GREEN, steps // 2, samplers.heun),
        ("dpmpp-2m", PURPLE, steps, samplers.dpmpp_2m),
        ("rk45", BLACK, steps, partial(samplers.rk45, rtol=1e-3, atol=1e-3)),
        ("ddpm", ORANGE, steps, samplers.ddpm),
        ("euler-maruyama", BLUE, steps, samplers.euler_maruyama),
        ("predictor-corrector", BLACK, steps // 2, samplers.predictor_corrector),
        ("dpmpp-2m-sde", PURPLE, steps, samplers.dpmpp_2m_sde),
        ("heun, churned", GREEN, steps // 2, partial(samplers.heun, churn=churn)),
    ]
    figure = Figure(figsize=(10, 4.5), dpi=DPI, layout="constrained")
    upper, lower = figure.subplots(2, 5, sharex=True, sharey=True)
    points = SIGMA_MAX * torch.randn(1500, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for axes, (name, color, count, sampler) in zip([*upper[:4], *lower], shown, strict=True):
        # The corrector takes the norms of its step over an image, here of all points; rk45's steps are an image's own.
        start = points[None] if name == "predictor-corrector" else points[:, None]
        sigmas = grids.karras(count, SIGMA_MIN, SIGMA_MAX)
        walk = list(sampler(RING.denoise, sigmas, start, _noise_like(start, 1)))
        steps_taken = _followed(sampler, sigmas, start) if name == "rk45" else walk
        levels = [SIGMA_MAX] + [step.sigma for step in steps_taken]
        states = [
            x.reshape(-1, 2) / sqrt(1 + sigma**2)
            for x, sigma in zip([start, *(s.x for s in steps_taken)], levels, strict=True)
        ]
        lines = torch.stack(states)[:, : 36 if axes in upper else 6]
        axes.plot(lines[..., 0], lines[..., 1], color=color, linewidth=0.7, alpha=0.7)
        result = walk[-1].x.reshape(-1, 2)
        axes.scatter(
            result[:, 0], result[:, 1], s=0.8, color=ORANGE if color != ORANGE else BLACK, linewidths=0, zorder=3
        )
        axes.set_title(f"{name}: {walk[-1].nfe}", fontsize=9)
    data = RING.draw(1500, seed=4)
    upper[4].scatter(data[:, 0], data[:, 1], s=0.8, color=ORANGE, linewidths=0)
    upper[4].set_title("the data", fontsize=9)
    for axes in figure.axes:
        axes.set_aspect("equal")
        axes.set_xlim(-2.4, 2.4)
        axes.set_ylim(-2.2, 2.2)
        axes.set_xticks([])
        axes.set_yticks([])
    return figure


def draw_orders() -> Figure:
    """Error of three solvers of the probability-flow ODE against the number of network evaluations."""
    figure = Figure(figsize=(5, 3.6), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    shown = (
        ("ddim, η = 0 (euler)", BLUE, "o", 1, 1, ddim_solver),
        ("heun", GREEN, "s", 2, 2, heun_solver),
        ("dpmpp-2m", PURPLE, "^", 2, 1, dpmpp_2m_solver),
    )
    for name, color, marker, order, cost, solver in shown:
        steps = [2**k // cost for k in range(3, 11)]
        errors = solution_errors(solver(LINE), LINE, steps)
        evaluations = [cost * count for count in steps]
        axes.plot(evaluations, errors, color=color, marker=marker, markersize=4, label=name, linewidth=1.4)
        last, error = evaluations[-1], errors[-1]
        guide = [16, last]
        axes.plot(guide, [error * (last / n) ** order for n in guide], color=color, linestyle=":", linewidth=1)
        axes.text(last * 1.15, error, f"slope −{order}", color=color, fontsize=8, va="center")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlim(6.5, 3000)
    axes.set_xlabel("network evaluations", fontsize=9)
    axes.set_ylabel(f"median error at σ = {SIGMA_MIN:g}", fontsize=9)
    axes.legend(fontsize=8, frameon=False)
    _tidy(axes)
    return figure


DRAWINGS: dict[str, Callable[[], Figure]] = {
    "paths.png": draw_paths,
    "objectives.png": draw_objectives,
    "samplers.png": draw_samplers,
    "trajectories.png": draw_trajectories,
    "orders.png": draw_orders,
}


def draw_all(out: Path) -> list[Path]:
    """Draw every figure into the folder ``out``; equal software gives equal bytes."""
    written = []
    for name, draw in DRAWINGS.items():
        buffer = io.BytesIO()
        draw().savefig(buffer, format="png")
        with Image.open(buffer) as image, atomic_path(out / name) as temporary:
            palette = image.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE)
            palette.save(temporary, "PNG", optimize=True)
        written.append(out / name)
    return written


def _density_of_uniform_times(path: NoisePath) -> tuple[Tensor, Tensor]:
    """At the timesteps of a discrete path, or at the middles of many equal intervals of a continuous one's time."""
    sigmas = path.sigmas if isinstance(path, DiscreteVP) else _middles(path)
    (spacing,) = torch.gradient(sigmas.log())  # equal times have equal probabilities
    return sigmas, 1 / (len(sigmas) * spacing)


def _middles(path: NoisePath) -> Tensor:
    edges = torch.linspace(*path.t_range(), 2001, dtype=torch.float64)
    return path.sigma((edges[1:] + edges[:-1]) / 2)


def _no_noise() -> Tensor:
    raise AssertionError("a deterministic sampler asked for noise")


def _noise_like(x: Tensor, seed: int) -> NoiseSource:
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(x.shape, generator=generator, dtype=x.dtype)


def _followed(sampler: SamplerFunction, sigmas: Tensor, start: Tensor) -> list[Step]:
    """Where a sampler that yields only its ends is between them: run to each noise level of the grid."""
    between = [torch.stack([sigmas[0], level, torch.zeros_like(level)]) for level in sigmas[1:-1]]
    return [next(sampler(RING.denoise, grid, start, _no_noise)) for grid in between]


@cache
def _reference(mixture: Mixture) -> tuple[Tensor, Tensor]:
    """200 starts, and where the probability-flow ODE takes them."""
    start = SIGMA_MAX * normal_quantiles(200)
    return start, _before_last(heun_solver(mixture), start, 4096)


def _before_last(solver: Solver, start: Tensor, steps: int) -> Tensor:
    """The state at ``SIGMA_MIN``: the last interval, to 0, has the same length for any number of steps."""
    return [step.x for step in solver(grids.karras(steps + 1, SIGMA_MIN, SIGMA_MAX), start)][-2]


def _places(sigmas: Tensor) -> Tensor:
    """Where noise levels stand on the axis: by their logarithm, falling, and 0 a little after the smallest."""
    return -sigmas.double().clamp_min(SIGMA_MIN / 2).log()


def _scaled(sigmas: Tensor, states: Sequence[Tensor]) -> Tensor:
    """States [steps + 1, N] at about unit variance, as a network sees them."""
    return torch.stack(list(states)) / (1 + sigmas.square()).sqrt()[:, None]


def _draw_marginals(axes: Axes, mixture: Mixture) -> None:
    """The density of x at every noise level, each column with the maximum 1."""
    places = torch.linspace(-log(SIGMA_MAX), -log(SIGMA_MIN / 2), 120, dtype=torch.float64)
    sigmas = (-places).exp()
    scaled = torch.linspace(-2.3, 2.3, 231, dtype=torch.float64)
    x = scaled[:, None] * (1 + sigmas.square()).sqrt()
    density = mixture.log_density(x, sigmas.expand_as(x)).exp()
    axes.contourf(places, scaled, density / density.amax(0), levels=8, cmap="Greys", vmax=2.2)


def _draw_result(axes: Axes, mixture: Mixture, samples: Tensor, color: str) -> None:
    """A histogram of samples, on its side, with the exact density."""
    density = torch.histc(samples, 92, -2.3, 2.3) / (len(samples) * 0.05)
    axes.barh((torch.arange(92) * 0.05 - 2.275).numpy(), density.numpy(), height=0.05, color=color, alpha=0.5)
    x = torch.linspace(-2.3, 2.3, 461, dtype=torch.float64)
    axes.plot(mixture.log_density(x).exp(), x, color=BLACK, linewidth=0.9)
    distance = f"W₁ {wasserstein(samples, mixture):.3f}"
    axes.text(0.97, 0.97, distance, transform=axes.transAxes, fontsize=8, ha="right", va="top")
    axes.set_xlim(0, 1.9)
    axes.set_xlabel("density", fontsize=9)
    axes.xaxis.set_major_locator(NullLocator())
    _tidy(axes)
    axes.grid(False)


def _tidy(axes: Axes) -> None:
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            axis.set_minor_formatter(NullFormatter())


app = typer.Typer(add_completion=False)


@app.command()
def main(out: Annotated[Path, typer.Option(help="Folder for the figures.")] = FIGURES) -> None:
    """Draw the figures of REPORT.md that show theory."""
    for path in draw_all(out):
        typer.echo(path)


if __name__ == "__main__":
    app()

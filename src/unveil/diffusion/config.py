"""What the user says of the diffusion, and of the sampler."""

import math
from collections.abc import Iterator
from itertools import chain
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Len

from unveil.diffusion import levels
from unveil.section import (
    GREATEST_SIGMA,
    LEAST_SIGMA,
    LISTED,
    HalfOpenShare,
    NonNegative,
    OpenShare,
    Positive,
    Problem,
    Section,
    Share,
)

PathName = Literal["vp-linear", "vp-cosine", "vp-sigmoid", "vp-sde", "sub-vp", "ve", "edm", "flow"]
ParameterizationName = Literal["eps", "v", "x0", "edm", "velocity"]
ObjectiveName = Literal["simple", "likelihood", "edm", "min-snr", "p2", "flow"]
FlowTimes = Literal["uniform", "logit-normal"]

SamplerName = Literal[
    "ddpm", "ddim", "euler", "heun", "euler-maruyama", "predictor-corrector", "dpmpp-2m", "dpmpp-2m-sde", "rk45"
]
GridName = Literal["karras", "log-linear", "uniform-t", "ddim-leading", "ddim-trailing", "ddim-linspace", "ddim-quad"]
Variance = Literal["small", "large"]
Threshold = Literal["none", "clip", "dynamic"]

Sigma = Annotated[float, Ge(LEAST_SIGMA), Le(GREATEST_SIGMA)]
Mean = Annotated[float, Ge(-10), Le(10)]  # of a logarithm: sampled noise levels stay where float32 can square them
Deviation = Annotated[float, Gt(0), Le(5)]
LogisticEnd = Annotated[float, Ge(-20), Le(20)]
UpTo100 = Annotated[float, Ge(0), Le(100)]
LEAST_HUBER_SCALE = 1e-4  # far below a level of 8 bits, and its square is a number in float32


class Diffusion(Section):
    """Noise path, parameterization and objective (design: everything is a denoiser)."""

    path: PathName = "vp-linear"
    """noise path: vp-linear (DDPM) | vp-cosine | vp-sigmoid | vp-sde | sub-vp | ve (Score SDE's three) | edm
    | flow (rectified flow)"""
    parameterization: ParameterizationName = "eps"
    """what the network predicts: eps (stem 1) | v | x0 | edm | velocity (stem 1)"""
    objective: ObjectiveName = "simple"
    """sigmas and weights in training: simple (DDPM) | likelihood | edm | min-snr | p2 | flow; on path edm only
    edm | flow"""
    timesteps: Annotated[int, Ge(2), Le(100_000)] = 1000
    """vp-linear, vp-cosine, vp-sigmoid: T"""
    beta_start: OpenShare = 1e-4
    """vp-linear: first beta (DDPM, 2006.11239, sec. 4)"""
    beta_end: OpenShare = 0.02
    """vp-linear: last beta, above beta_start"""
    cosine_offset: Annotated[float, Gt(0), Le(1)] = 0.008
    """vp-cosine: s (Nichol and Dhariwal, 2102.09672, eq. 17)"""
    sigmoid_start: LogisticEnd = -3.0
    """vp-sigmoid: where the logistic function starts (Jabri et al., 2212.11972; 2301.10972, alg. 1)"""
    sigmoid_end: LogisticEnd = 3.0
    """vp-sigmoid: where it ends, above sigmoid_start"""
    sigmoid_tau: Annotated[float, Ge(0.1), Le(10)] = 1.0
    """vp-sigmoid: temperature; a smaller one is steeper"""
    beta_min: Annotated[float, Gt(0), Le(10)] = 0.1
    """vp-sde, sub-vp: beta(0) (Score SDE, 2011.13456, app. C)"""
    beta_max: Annotated[float, Gt(0), Le(100)] = 20.0
    """vp-sde, sub-vp: beta(1), above beta_min"""
    sigma_min: Annotated[float, Gt(0), Le(1)] = 0.02
    """ve: sigma(0) (Score SDE, app. C, has 0.01 for pixels in [0, 1]; ours lie in [-1, 1])"""
    sigma_max: Annotated[float, Gt(1), Le(10_000)] = 100.0
    """ve: sigma(1), about the largest distance of two images (2006.09011, technique 1): 180 for CelebA 64 x 64
    (50 and 90 for pixels in [0, 1])"""
    sigma_data: Annotated[float, Ge(1e-3), Le(1e3)] = 0.5
    """edm: standard deviation of the data in [-1, 1] (EDM, 2206.00364, table 1)"""
    p_mean: Mean = -1.2
    """edm: mean of ln(sigma) in training (EDM, table 1)"""
    p_std: Deviation = 1.2
    """edm: standard deviation of ln(sigma)"""
    flow_times: FlowTimes = "logit-normal"
    """flow: density of t: uniform (2209.03003) | logit-normal (SD3, 2403.03206, sec. 3.1)"""
    logit_mean: Mean = 0.0
    """flow, logit-normal: t = sigmoid(logit_mean + logit_std n)"""
    logit_std: Deviation = 1.0
    """flow, logit-normal: see logit_mean"""
    t_min: OpenShare = 0.05
    """flow: the velocity weight 1/t^2 holds this value below it (JiT, 2511.13720)"""
    min_snr_gamma: Positive = 5.0
    """min-snr: greatest weight of the error of the image (2303.09556)"""
    p2_k: Positive = 1.0
    """p2: weight SNR / (k + SNR)^gamma of the error of the image (2204.00227)"""
    p2_gamma: Annotated[float, Ge(0), Le(2)] = 1.0
    """p2: see p2_k; 0 = as simple"""
    huber_scale: UpTo100 = 0.0
    """errors of the image beyond it, times (1 + sigma^2)^huber_growth, count linearly, not squared (pseudo-Huber,
    2403.16728), 1e-4 or more; 0 = all squared"""
    huber_growth: Annotated[float, Ge(0), Le(2)] = 1.0
    """of huber_scale: it grows as (1 + sigma^2)^growth; 0 = one scale at all noise levels"""
    difference_weight: UpTo100 = 0.0
    """errors of the differences of neighbouring pixels count so often beside those of the pixels (as 1511.05440);
    0 = not at all"""
    noise_candidates: Annotated[int, Ge(1), Le(64)] = 1
    """an image takes the nearest of so many draws of noise (2505.18521); 1 = the only one"""
    input_perturbation: HalfOpenShare = 0.0
    """extra noise of the network's input, as a share of its noise (2301.11706; 0.1 in ADM-IP); 0 = none"""

    def sigma_range(self) -> tuple[float, float]:
        """The least and the greatest sigma that training visits, as the path of this name has it."""
        return levels.sigma_range(self)

    def unread(self) -> set[str]:
        """What neither the path nor the parameterization nor the objective reads."""
        read = {*levels.PATH_VALUES[self.path], *levels.OBJECTIVE_VALUES[self.objective]}
        read |= {"sigma_data"} if self.parameterization == "edm" else set()
        read -= {"logit_mean", "logit_std"} if self.flow_times == "uniform" else set()
        unread = set(chain(*levels.PATH_VALUES.values(), *levels.OBJECTIVE_VALUES.values())) - read
        return unread if self.huber_scale else unread | {"huber_growth"}

    def problems(self) -> Iterator[Problem]:
        """Ranges that are empty, and parts that do not go together."""
        empty: list[Problem] = []
        for low, high in (("beta_start", "beta_end"), ("sigmoid_start", "sigmoid_end"), ("beta_min", "beta_max")):
            if getattr(self, high) <= (bound := getattr(self, low)):
                empty.append(Problem(high, f"a number above {low}, {bound:g}"))
        if empty:  # of such a path there is no range of sigmas
            yield from empty
            return
        if (refused := levels.refusal(self)) is not None:
            yield refused
        if 0 < self.huber_scale < LEAST_HUBER_SCALE:
            yield Problem("huber_scale", f"0, or a number in [{LEAST_HUBER_SCALE:g}, 100]")
        if self.objective == "likelihood":
            for key, neutral, why in (
                ("huber_scale", 0, "squared errors alone bound it"),
                ("difference_weight", 0, "errors of pixels bound it"),
                ("noise_candidates", 1, "noise must be independent"),
            ):
                if getattr(self, key) != neutral:
                    yield Problem(key, f"{neutral} with train.diffusion.objective likelihood: {why}")
        least, greatest = self.sigma_range()
        if not (least >= LEAST_SIGMA and greatest <= GREATEST_SIGMA):
            yield Problem(
                levels.DECIDING_VALUES[self.path][least >= LEAST_SIGMA],
                f"a number with which sigma stays in [{LEAST_SIGMA:g}, {GREATEST_SIGMA:g}] on path {self.path} "
                f"(now {least:.3g} to {greatest:.3g})",
            )


AS_DATA = "data"  # as a request: for the attributes of training images


class Guidance(Section):
    """A guide, which the model is pushed away from."""

    guidance: Annotated[float, Ge(0), Le(100)] = 1.0
    """scale: 1 = the model as it is, 0 = its guide, above 1 exaggerates what tells them apart (2207.12598)"""
    guidance_interval: Annotated[tuple[NonNegative, ...], LISTED, Len(0, 2)] = ()
    """sigmas with guidance, above the first and up to the second (2404.07724); [] = all"""
    guidance_rescale: Share = 0.0
    """share of the way back to the spread that the model's own image has (2305.08891)"""
    guide: str | None = None
    """null = the model, told nothing | half-life:N, power:S, snapshot:N of the same training | the path of another
    model's folder (autoguidance, 2406.02507)"""
    guide_attributes: bool = True
    """guide: whether it is told the attributes too"""

    @property
    def guides(self) -> bool:
        """Whether a guide has a say."""
        return self.guidance != 1

    def unread(self) -> set[str]:
        """What describes a guide, where there is none."""
        if self.guides:
            return set() if self.guide is not None else {"guide_attributes"}
        return {"guidance_interval", "guidance_rescale", "guide", "guide_attributes"}

    def problems(self) -> Iterator[Problem]:
        """An interval that is none."""
        if self.guidance_interval and not (
            len(self.guidance_interval) == 2 and self.guidance_interval[0] < self.guidance_interval[1]
        ):
            yield Problem("guidance_interval", "[], or two sigmas, the smaller one first")
        if self.guide is not None and not self.guide.strip():
            yield Problem("guide", "null, an average of the weights, or a folder")


class Sampler(Section):
    """A sampler, its grid and their numbers."""

    sampler: SamplerName = "ddpm"
    """ddpm | ddim | euler | heun | euler-maruyama | predictor-corrector | dpmpp-2m | dpmpp-2m-sde | rk45"""
    steps: Annotated[int, Ge(1), Le(100_000)] = 1000
    """intervals of the grid; heun evaluates the network 2 steps - 1 times, rk45 as often as it needs"""
    grid: GridName = "ddim-leading"
    """karras | log-linear | uniform-t | ddim-leading, ddim-trailing, ddim-linspace, ddim-quad (paths vp-linear,
    vp-cosine, vp-sigmoid)"""
    sigma_min: Sigma = 0.002
    """karras, log-linear: smallest sigma"""
    sigma_max: Sigma = 80.0
    """karras, log-linear, uniform-t: largest sigma, above sigma_min"""
    rho: Annotated[float, Ge(0.5), Le(100)] = 7.0
    """karras: how the steps gather at small sigma (EDM, 2206.00364, eq. 5)"""
    eta: Share = 0.0
    """ddim: 0 deterministic ... 1 as much noise as ddpm (DDIM, 2010.02502, eq. 16)"""
    variance: Variance = "small"
    """ddpm: small (posterior) | large (beta; paths vp-linear, vp-cosine, vp-sigmoid, vp-sde) (DDPM, sec. 3.2)"""
    s_churn: NonNegative = 0.0
    """euler, heun: noise added and removed again, over all steps (EDM, algorithm 2; its table 5: 30 to 80); 0 = none"""
    s_tmin: NonNegative = 0.05
    """euler, heun: least sigma at which s_churn adds noise (EDM, table 5)"""
    s_tmax: Positive = 50.0
    """euler, heun: greatest sigma at which s_churn adds noise (EDM, table 5)"""
    s_noise: Annotated[float, Gt(0), Le(2)] = 1.003
    """euler, heun: standard deviation of the noise that s_churn adds (EDM, table 5)"""
    snr: OpenShare = 0.16
    """predictor-corrector: signal-to-noise ratio of a Langevin step (Score SDE, 2011.13456, algorithm 4)"""
    corrector_steps: Annotated[int, Ge(0), Le(1000)] = 1
    """predictor-corrector: Langevin steps at every noise level"""
    rtol: OpenShare = 1e-3
    """rk45: error a step, relative to x; Score SDE has 1e-5"""
    atol: OpenShare = 1e-3
    """rk45: error a step, in units of x; Score SDE has 1e-5"""
    threshold: Threshold = "none"
    """what keeps the denoised image in [-1, 1]: none | clip (DDPM's code) | dynamic (Imagen, 2205.11487, sec. 2.3)"""
    threshold_percentile: Annotated[float, Gt(0), Le(1)] = 0.995
    """dynamic: share of an image's pixels that lie within its limit"""

    @property
    def nfe(self) -> int | None:
        """Network evaluations for an image; None where they depend on the image, or on which timesteps are equal."""
        if self.sampler == "rk45" or self.grid == "ddim-quad":
            return None
        if self.sampler == "heun":
            return 2 * self.steps - 1
        if self.sampler == "predictor-corrector":
            return self.steps + self.corrector_steps * (self.steps - 1)
        return self.steps

    def unread(self) -> set[str]:
        """What neither the sampler nor the grid reads."""
        churns = self.sampler in ("euler", "heun")
        read = {
            "sigma_min": self.grid in ("karras", "log-linear"),
            "sigma_max": not self.grid.startswith("ddim"),
            "rho": self.grid == "karras" and self.sampler != "rk45",
            "steps": self.sampler != "rk45" or self.grid not in ("karras", "log-linear"),  # whose ends alone it takes
            "eta": self.sampler == "ddim",
            "variance": self.sampler == "ddpm",
            "s_churn": churns,
            **dict.fromkeys(("s_tmin", "s_tmax", "s_noise"), churns and self.s_churn > 0),
            **dict.fromkeys(("snr", "corrector_steps"), self.sampler == "predictor-corrector"),
            **dict.fromkeys(("rtol", "atol"), self.sampler == "rk45"),
            "threshold_percentile": self.threshold == "dynamic",
        }
        return {name for name, is_read in read.items() if not is_read}

    def problems(self) -> Iterator[Problem]:
        """Ranges that are empty."""
        if self.sigma_min >= self.sigma_max:
            yield Problem("sigma_min", f"a number below sample.sigma_max, {self.sigma_max:g}")
        if self.s_tmin > self.s_tmax:
            yield Problem("s_tmin", f"a number up to sample.s_tmax, {self.s_tmax:g}")
        if self.sampler == "rk45" and self.steps == 1:
            yield Problem("steps", "2 or more: sampler rk45 goes from the largest to the smallest sigma of the grid")

    def misfits(self, diffusion: Diffusion) -> Iterator[Problem]:
        """Grids that the path of a model does not have, and noise on which it was not trained."""
        path, discrete = diffusion.path, diffusion.path in levels.DISCRETE_PATHS
        if not self.grid.startswith("ddim"):
            if path not in levels.UNBOUNDED_PATHS:
                yield from self._untrained_sigmas(diffusion)
        elif not discrete:
            yield Problem(
                "grid",
                f"karras | log-linear | uniform-t for train.diffusion.path {path}, whose time is continuous "
                f"({self.grid} visits the timesteps of {', '.join(levels.DISCRETE_PATHS)})",
            )
        elif self.steps > diffusion.timesteps:
            yield Problem(
                "steps",
                f"at most train.diffusion.timesteps, {diffusion.timesteps}, on sample.grid {self.grid}",
            )
        elif self.steps == 1 and self.grid != "ddim-trailing":
            yield Problem(
                "steps",
                f"2 or more on sample.grid {self.grid}: one step would start at t = 0, where there is no noise",
            )
        if self.sampler == "ddpm" and self.variance == "large" and path not in levels.PRESERVING_PATHS:
            yield Problem(
                "variance",
                f"small for train.diffusion.path {path} (only {', '.join(levels.PRESERVING_PATHS)} have betas)",
            )
        if self.sampler in ("euler", "heun") and path not in levels.UNBOUNDED_PATHS:  # which churn must not leave
            greatest = diffusion.sigma_range()[1]
            raise_by = 1 + min(self.s_churn / self.steps, math.sqrt(2) - 1)
            first = greatest if self.grid.startswith("ddim") else self.sigma_max
            if raise_by > 1 and min(first, self.s_tmax) * raise_by > greatest * 1.01:
                yield Problem(
                    "s_tmax",
                    f"at most {greatest / raise_by:.3g}: s_churn raises sigma {raise_by:.3g} times, and "
                    f"{path} ends at {greatest:.3g}",
                )

    def _untrained_sigmas(self, diffusion: Diffusion) -> Iterator[Problem]:
        path = diffusion.path
        least, greatest = diffusion.sigma_range()
        even = self.grid == "uniform-t"
        span = f"in [{least:.3g}, {greatest:.3g}], the sigmas that {path} has with these parameters"
        if not even and self.sigma_min < least * 0.99:
            yield Problem("sigma_min", f"a number {span}")
        if self.sigma_max > greatest * 1.01 or self.sigma_max < least * 0.99:
            yield Problem("sigma_max", f"a number {span}")
        elif even and self.sigma_max <= least * 1.01:
            yield Problem("sigma_max", f"a number {span}, above the least: there grid uniform-t ends")

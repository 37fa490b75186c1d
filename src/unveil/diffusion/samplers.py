"""Samplers: from noise to images with any denoiser and any grid, in the common frame ``x = x0 + sigma n``.

All have one signature: ``sampler(denoiser, sigmas, x, noise, ...)``, and yield a :class:`Step` after every
interval of the grid; the last one's ``x`` is the result. Memory and arithmetic are those of ``x``'s dtype. Between
equal sigmas there is no step and no evaluation; a grid that rises is a ValueError (see :func:`intervals`).
None of them counts its evaluations: :class:`Counted`, around the network, does.

| sampler | solves | order | evaluations on n intervals |
| --- | --- | --- | --- |
| ddim | ODE (eta 0) or SDE | 1 | n |
| ddpm | SDE | 1 | n |
| euler | ODE | 1 | n |
| heun | ODE | 2 | 2 n - 1 |
| dpmpp_2m | ODE | 2 | n |
| dpmpp_2m_sde | SDE | 2 (measured on Gaussian data) | n |
| euler_maruyama | SDE | 1 | n |
| predictor_corrector | SDE, with Langevin steps at every level | 1 | n + corrector_steps (n - 1) |
| rk45 | ODE | 5, steps chosen by the error | as many as it needs |

ODE is the probability-flow equation ``dx/dsigma = (x - D) / sigma``, SDE the reverse stochastic one (2011.13456), for
which the order is the weak one, that of the distribution.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from itertools import pairwise
from threading import Lock
from typing import Any, Concatenate, Literal, ParamSpec

import torch
from torch import Tensor

from unveil.diffusion import ode
from unveil.diffusion.denoiser import DenoiserFunction, expand

P = ParamSpec("P")
States = Iterator[tuple[Tensor, Tensor, float]]
"""Steps without their count."""
NoiseSource = Callable[[], Tensor]
"""Gives fresh unit Gaussian noise of x's shape at every call."""


@dataclass(frozen=True)
class Step:
    """State of a sampler after one interval of its grid.

    Attributes:
        x: the images, at noise level ``sigma``.
        denoised: the denoiser's estimate of the clean images, from the interval's start.
        sigma: the noise level reached.
        nfe: network evaluations so far, for each image.
    """

    x: Tensor
    denoised: Tensor
    sigma: float
    nfe: int


SamplerFunction = Callable[[DenoiserFunction, Tensor, Tensor, NoiseSource], Iterator[Step]]
"""A sampler of this module, its own parameters bound."""


class Counted:
    """A denoiser that counts: in ``images`` it has how many went through its networks, in whatever thread.

    Args:
        denoiser: what is called.
        networks: those that it calls, if it is made of others, which then count for it.
    """

    def __init__(self, denoiser: Callable[..., Tensor], *networks: "Counted") -> None:
        self.denoiser = denoiser
        self.networks = networks
        self._images = 0
        self._lock = Lock()

    def __call__(self, x: Tensor, sigma: Tensor, condition: Any = None) -> Tensor:
        """What the denoiser makes of x [B, ...] at sigma [B]."""
        with self._lock:
            self._images += len(x)
        return self.denoiser(x, sigma, condition) if condition is not None else self.denoiser(x, sigma)

    @property
    def images(self) -> int:
        """How many images went through the networks."""
        return sum(network.images for network in self.networks) if self.networks else self._images


def counting(
    sampler: Callable[Concatenate[DenoiserFunction, Tensor, Tensor, NoiseSource, P], States],
) -> Callable[Concatenate[DenoiserFunction, Tensor, Tensor, NoiseSource, P], Iterator[Step]]:
    """The sampler with the evaluations counted around its denoiser, which may be a :class:`Counted` already."""

    @wraps(sampler)
    def steps(
        denoiser: DenoiserFunction, sigmas: Tensor, x: Tensor, noise: NoiseSource, /, *own: P.args, **named: P.kwargs
    ) -> Iterator[Step]:
        counted = denoiser if isinstance(denoiser, Counted) else Counted(denoiser)
        before, size = counted.images, max(len(x), 1)
        for state in sampler(counted, sigmas, x, noise, *own, **named):
            yield Step(*state, (counted.images - before) // size)

    return steps


@dataclass(frozen=True)
class Churn:
    """EDM's stochasticity (2206.00364, algorithm 2): before a step some noise is added, and removed with the rest.

    Attributes:
        s_churn: how much, over all steps; 0 = none.
        s_tmin: least sigma at which noise is added.
        s_tmax: greatest sigma at which noise is added.
        s_noise: standard deviation of the added noise; a little above 1 makes up for what the network removes too much.
    """

    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0

    def raised(self, sigma: float, steps: int) -> float:
        """The noise level to which a step of so many starts from sigma; sigma itself where nothing is added."""
        if not self.s_tmin <= sigma <= self.s_tmax:
            return sigma
        return sigma * (1 + min(self.s_churn / steps, math.sqrt(2) - 1))

    def add(self, x: Tensor, sigma: float, raised: float, noise: NoiseSource) -> Tensor:
        """x with noise that brings it from level sigma to ``raised``."""
        if raised == sigma:
            return x
        return x + math.sqrt(raised**2 - sigma**2) * self.s_noise * noise()


NO_CHURN = Churn()
GREATEST = 1e15  # of a noise level, and the least is one part of it: float32 can square both


@counting
def ddim(denoiser: DenoiserFunction, sigmas: Tensor, x: Tensor, noise: NoiseSource, eta: float = 0.0) -> States:
    """DDIM (2010.02502, eq. 12 and 16): keep a part of the noise that was found, draw the rest anew.

    In the common frame eq. 16 is ``sigma_up^2 = eta^2 sigma_next^2 (sigma^2 - sigma_next^2) / sigma^2``.
    With eta = 0 it is Euler's method on the probability-flow ODE; with eta = 1 it is DDPM.
    """
    for sigma, sigma_next in intervals(sigmas):
        denoised = denoiser(x, _levels(x, sigma))
        sigma_up = eta * sigma_next * (1 - (sigma_next / sigma) ** 2) ** 0.5
        sigma_down = (sigma_next**2 - sigma_up**2) ** 0.5
        x = denoised + (sigma_down / sigma) * (x - denoised)
        if sigma_up > 0:
            x = x + sigma_up * noise()
        yield x, denoised, sigma_next


@counting
def ddpm(
    denoiser: DenoiserFunction,
    sigmas: Tensor,
    x: Tensor,
    noise: NoiseSource,
    variance: Literal["small", "large"] = "small",
) -> States:
    """DDPM's ancestral sampling (2006.11239, algorithm 2 and sec. 3.2), between any two noise levels.

    The mean is the posterior's, ``D + (sigma_next / sigma)^2 (x - D)``. The variance is the posterior's
    (``small``), or that of the forward step, beta (``large``, which needs a variance-preserving path).
    """
    for sigma, sigma_next in intervals(sigmas):
        denoised = denoiser(x, _levels(x, sigma))
        ratio = (sigma_next / sigma) ** 2
        x = denoised + ratio * (x - denoised)
        if sigma_next > 0:
            posterior = sigma_next**2 * (1 - ratio)
            # beta = 1 - alpha_t^2 / alpha_next^2, seen in the frame that is divided by alpha_next.
            forward = (sigma**2 - sigma_next**2) * (1 + sigma_next**2) / (1 + sigma**2)
            x = x + (posterior if variance == "small" else forward) ** 0.5 * noise()
        yield x, denoised, sigma_next


@counting
def euler(denoiser: DenoiserFunction, sigmas: Tensor, x: Tensor, noise: NoiseSource, churn: Churn = NO_CHURN) -> States:
    """Euler's method on the probability-flow ODE; with ``churn`` as EDM's algorithm 2 without its correction."""
    grid = intervals(sigmas)
    for sigma, sigma_next in grid:
        raised = churn.raised(sigma, len(grid))
        x = churn.add(x, sigma, raised, noise)
        denoised = denoiser(x, _levels(x, raised))
        x = x + (sigma_next - raised) * (x - denoised) / raised
        yield x, denoised, sigma_next


@counting
def heun(denoiser: DenoiserFunction, sigmas: Tensor, x: Tensor, noise: NoiseSource, churn: Churn = NO_CHURN) -> States:
    """Heun's second-order method on the probability-flow ODE (2206.00364, algorithm 1; with ``churn`` algorithm 2).

    ``dx/dsigma = (x - D) / sigma``. The last interval, to 0, is an Euler step: 2 steps - 1 evaluations.
    """
    grid = intervals(sigmas)
    for sigma, sigma_next in grid:
        raised = churn.raised(sigma, len(grid))
        x = churn.add(x, sigma, raised, noise)
        denoised = denoiser(x, _levels(x, raised))
        slope = (x - denoised) / raised
        euler = x + (sigma_next - raised) * slope
        if sigma_next > 0:
            slope_next = (euler - denoiser(euler, _levels(x, sigma_next))) / sigma_next
            x = x + (sigma_next - raised) * (slope + slope_next) / 2
        else:
            x = euler
        yield x, denoised, sigma_next


@counting
def dpmpp_2m(denoiser: DenoiserFunction, sigmas: Tensor, x: Tensor, noise: NoiseSource) -> States:
    """DPM-Solver++(2M) (2211.01095, algorithm 2): a second-order multistep method, one evaluation a step.

    In ``lambda = -ln sigma`` the linear part of the ODE is solved exactly, and D is extrapolated from the last two
    estimates to the middle of the step. The first interval, and the last, to 0, which is infinitely long, have no use
    for the estimate before: there it is DDIM. Noise is not used.
    """
    before: tuple[float, Tensor] | None = None  # length in lambda of the interval before, and its estimate
    for sigma, sigma_next in intervals(sigmas):
        denoised = denoiser(x, _levels(x, sigma))
        target, before = _extrapolated(denoised, before, sigma, sigma_next)
        x = target + (sigma_next / sigma) * (x - target)
        yield x, denoised, sigma_next


@counting
def dpmpp_2m_sde(denoiser: DenoiserFunction, sigmas: Tensor, x: Tensor, noise: NoiseSource) -> States:
    """SDE-DPM-Solver++(2M) (2211.01095): DPM-Solver++(2M) on the reverse SDE.

    In the common frame it is DDPM with the small variance and the extrapolated estimate in the place of D.
    """
    before: tuple[float, Tensor] | None = None
    for sigma, sigma_next in intervals(sigmas):
        denoised = denoiser(x, _levels(x, sigma))
        target, before = _extrapolated(denoised, before, sigma, sigma_next)
        ratio = (sigma_next / sigma) ** 2
        x = target + ratio * (x - target)
        if sigma_next > 0:
            x = x + sigma_next * (1 - ratio) ** 0.5 * noise()
        yield x, denoised, sigma_next


@counting
def euler_maruyama(denoiser: DenoiserFunction, sigmas: Tensor, x: Tensor, noise: NoiseSource) -> States:
    """Euler-Maruyama's method on the reverse SDE (2011.13456, eq. 6), with sigma as the time.

    The last interval, to 0, where the drift has no limit, returns the denoised image (2009.05475).
    """
    score_of = score(denoiser)
    for sigma, sigma_next in intervals(sigmas):
        gradient = score_of(x, _levels(x, sigma))
        denoised = x + sigma**2 * gradient
        if sigma_next > 0:
            drift, spread = -2 * sigma * gradient, math.sqrt(2 * sigma)  # f x - g^2 score, and g, with g^2 = 2 sigma
            change = sigma_next - sigma
            x = x + change * drift + spread * math.sqrt(-change) * noise()
        else:
            x = denoised
        yield x, denoised, sigma_next


@counting
def predictor_corrector(
    denoiser: DenoiserFunction,
    sigmas: Tensor,
    x: Tensor,
    noise: NoiseSource,
    snr: float = 0.16,
    corrector_steps: int = 1,
) -> States:
    """Predictor-corrector sampling (2011.13456, algorithm 2): go down one level, then mix within it.

    The predictor is the paper's reverse diffusion (eq. 46): the reverse SDE with the variance as its time, so that
    the step to 0 returns D. The corrector is Langevin dynamics with the step size of ``snr``.
    """
    score_of = score(denoiser)
    for sigma, sigma_next in intervals(sigmas):
        gradient = score_of(x, _levels(x, sigma))
        denoised, removed = x + sigma**2 * gradient, sigma**2 - sigma_next**2
        x = x + removed * gradient
        if sigma_next > 0:
            x = x + math.sqrt(removed) * noise()
            for _ in range(corrector_steps):
                x = langevin_step(x, score_of(x, _levels(x, sigma_next)), noise(), snr, sigma_next)
        yield x, denoised, sigma_next


@counting
def rk45(
    denoiser: DenoiserFunction,
    sigmas: Tensor,
    x: Tensor,
    noise: NoiseSource,
    rtol: float = 1e-3,
    atol: float = 1e-3,
) -> States:
    """Dormand and Prince's adaptive method on the probability-flow ODE (2011.13456, sec. 4.3); noise is not used.

    Of the grid only the two ends above 0 count: between them each image has steps of its own, as long as the
    tolerances allow, so that its result depends on no other image. Two steps are yielded, the state at the lower end
    and, of a grid that ends at 0, the denoised image. Their NFE is that of the image that needed most. The error a step
    is at most ``atol``, in units of x, and ``rtol`` relative to x.

    Raises:
        ValueError: if the grid has no two ends above 0.
        ArithmeticError: if the denoiser's estimates are not finite.
    """
    grid = intervals(sigmas)
    if len(grid) < 2 and not grid[0][1]:
        raise ValueError("rk45 goes to the smallest sigma above 0, which needs 2 steps or more between unequal levels")

    def slope(sigma: Tensor, x: Tensor) -> Tensor:
        levels = sigma.to(x.dtype)
        return (x - denoiser(x, levels)) / expand(levels, x)

    start, end = grid[0][0], grid[-1][1] or grid[-1][0]
    solution = ode.rk45(slope, x, start, end, rtol, atol)
    denoised = denoiser(solution.y, _levels(x, end))
    yield solution.y, denoised, end
    if not grid[-1][1]:
        yield denoised, denoised, 0.0


def _extrapolated(
    denoised: Tensor, before: tuple[float, Tensor] | None, sigma: float, sigma_next: float
) -> tuple[Tensor, tuple[float, Tensor] | None]:
    """The estimate in the middle of an interval (2211.01095, algorithm 2), and what the next one needs."""
    if sigma_next == 0:
        return denoised, None
    length = math.log(sigma / sigma_next)
    if before is None:
        return denoised, (length, denoised)
    length_before, denoised_before = before
    share = length / (2 * length_before)
    return denoised + share * (denoised - denoised_before), (length, denoised)


def intervals(sigmas: Tensor) -> list[tuple[float, float]]:
    """The steps of a grid, from one noise level to the next, without those between levels that are equal to 1e-9.

    Raises:
        ValueError: unless the levels never rise, fall at least once, and are 0 or of a size that float32 can square.
    """
    steps = list(pairwise(sigmas.tolist()))
    wrong = [f"{a:g} before {b:g}" for a, b in steps if not (GREATEST >= a >= b >= 0 and (b >= 1 / GREATEST or b == 0))]
    falling = [(a, b) for a, b in steps if not math.isclose(a, b)]
    if wrong or not falling:
        found = wrong[0] if wrong else f"{len(sigmas)} that do not fall"
        raise ValueError(
            f"sigmas: found {found}, expected finite levels that fall, from {GREATEST:g} at most to 0 or above"
        )
    return falling


def score(denoiser: DenoiserFunction) -> DenoiserFunction:
    """The gradient of the log density of noisy images, for sigma above 0: ``(D(x; sigma) - x) / sigma^2``.

    It is the direction to the denoised image (Tweedie; Vincent 2011). In the common frame with sigma as its time the
    noising process is ``dx = sqrt(2 sigma) dw``: no drift, and a variance of sigma^2 gathered until sigma.
    """
    return lambda x, sigma: (denoiser(x, sigma) - x) / expand(sigma, x).square()


def langevin_step(x: Tensor, gradient: Tensor, noise: Tensor, snr: float, sigma: float) -> Tensor:
    """One step of Langevin dynamics at a constant noise level (2011.13456, algorithm 4): the corrector.

    ``x + e score + sqrt(2 e) z`` with the step size ``e = 2 (snr |z| / |score|)^2``, which makes ``snr`` the ratio
    of the norms of the two changes. Its norms are those of each image, as the algorithm says
    (the paper's code takes the mean over a batch, which ties an image to its neighbours). Algorithm 5, for VP, takes
    ``1 - beta_i`` times this size; at T = 1000 that is at most 2 % less, and is left out: no sampler here knows betas.

    Two bounds keep a step finite where the score is rounding noise, or 0. Pixels of [-1, 1] have at most the variance
    ``1 + sigma^2``, so the mean of ``|score|^2`` is at least ``|z|^2 / (1 + sigma^2)`` (Fisher information). An image
    is held to a tenth of that norm, which chance does not reach. And ``D - x`` is known to the rounding of x alone.

    Args:
        x: [B, ...].
        gradient: the score at x.
        noise: unit Gaussian, of x's shape.
        snr: r of the paper, 0.16 there on CIFAR-10.
        sigma: the noise level of x, above 0.
    """
    unit = _norm(noise)
    rounding = torch.finfo(x.dtype).eps / sigma**2 * _norm(x)
    ratio = unit / _norm(gradient).maximum(0.1 * unit / math.sqrt(1 + sigma**2)).maximum(rounding)
    size = expand(2 * (snr * ratio).square(), x)
    return x + size * gradient + (2 * size).sqrt() * noise


def _norm(x: Tensor) -> Tensor:
    """Euclidean norm of each image: [B, ...] to [B]."""
    return x.unsqueeze(-1).flatten(1).norm(dim=1)


def _levels(x: Tensor, sigma: float) -> Tensor:
    return torch.full((len(x),), sigma, dtype=x.dtype, device=x.device)

import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from studies.illustrations import (
    DRAWINGS,
    LINE,
    SIGMA_MAX,
    SIGMA_MIN,
    app,
    ddim_solver,
    ddpm_solver,
    dpmpp_2m_solver,
    heun_solver,
    log_sigma_density,
    normal_quantiles,
    quantiles,
    solution_errors,
    wasserstein,
)
from typer.testing import CliRunner

from studies import illustrations
from unveil.diffusion import grids
from unveil.diffusion.objectives import P2, EDMObjective, FlowMatching, Likelihood, MinSNR, Simple
from unveil.diffusion.paths import EDM, VE, VPSDE, Flow, SubVP, VPCosine, VPLinear, VPSigmoid
from unveil.networks.config import UNetConfig
from unveil.networks.unet import UNet
from unveil.recipes import load_recipe

ROOT = Path(__file__).parents[2]
LARGEST = 120_000  # bytes of a figure


@pytest.fixture(scope="module")
def report():
    return (ROOT / "REPORT.md").read_text(encoding="utf-8")


def _samples_of(solver, count, steps=64):
    start = SIGMA_MAX * torch.randn(count, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    *_, last = solver(grids.karras(steps, SIGMA_MIN, SIGMA_MAX), start)
    return last.x


def test_quantiles_have_the_moments_of_the_mixture():
    values = quantiles(LINE, 20_000)
    means, variances = LINE.means[:, 0], LINE.covariances[:, 0, 0]
    assert float(values.mean()) == pytest.approx(float(LINE.weights @ means), abs=1e-3)
    assert float(values.square().mean()) == pytest.approx(float(LINE.weights @ (means**2 + variances)), abs=1e-3)
    assert (values.diff() >= 0).all()


def test_wasserstein_of_a_shift_is_the_shift():
    values = quantiles(LINE, 1000)
    assert wasserstein(values, LINE) == 0
    assert wasserstein(values.flip(0) + 0.25, LINE) == pytest.approx(0.25)


@pytest.mark.parametrize(
    "objective",
    [
        Simple(VPLinear()),
        Simple(VPLinear(500)),
        P2(Flow()),
        MinSNR(VE()),
        Likelihood(SubVP()),
        EDMObjective(),
        FlowMatching(),
        FlowMatching(0.8, 0.8),
        FlowMatching(times="uniform"),
    ],
    ids=str,
)
def test_density_of_training_is_that_of_the_draws(objective):
    sigmas, density = log_sigma_density(objective)
    logs = sigmas.log()
    cumulated = torch.cat([torch.zeros(1, dtype=torch.float64), torch.cumulative_trapezoid(density, logs)])
    assert float(cumulated[-1]) == pytest.approx(1, abs=3e-3)  # a discrete path lacks the half of 1 / T at each end
    drawn = objective.sample_sigma(50_000, torch.Generator().manual_seed(0)).double().log().sort().values
    shares = torch.searchsorted(drawn, logs, right=True) / len(drawn)
    assert float((shares - cumulated).abs().max()) < 0.01


def test_density_of_an_unknown_objective_is_an_error():
    with pytest.raises(TypeError, match="object"):
        log_sigma_density(object())  # type: ignore[arg-type]


@pytest.mark.parametrize("solver", [ddim_solver(LINE), heun_solver(LINE), dpmpp_2m_solver(LINE), ddpm_solver(LINE, 2)])
def test_every_sampler_ends_in_the_mixture(solver):
    assert wasserstein(_samples_of(solver, 4000), LINE) < 0.04
    assert wasserstein(torch.zeros(4000, dtype=torch.float64), LINE) > 0.3  # what a useless one would have


@pytest.mark.parametrize(("solver", "order"), [(ddim_solver, 1), (heun_solver, 2), (dpmpp_2m_solver, 2)])
def test_error_of_a_solver_falls_at_its_order(solver, order):
    coarse, fine = solution_errors(solver(LINE), LINE, [64, 128])
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


def test_normal_quantiles_are_symmetric_and_of_unit_variance():
    values = normal_quantiles(2000)
    torch.testing.assert_close(values, -values.flip(0))
    assert float(values.square().mean()) == pytest.approx(1, abs=5e-3)


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn") / "figures"
    result = CliRunner().invoke(app, ["--out", str(folder)])
    assert result.exit_code == 0, result.output
    return folder


def test_figures_are_drawn_and_small(figures):
    drawn = sorted(figures.iterdir())
    assert [path.name for path in drawn] == sorted(DRAWINGS)
    for path in drawn:
        assert path.stat().st_size < LARGEST
        with Image.open(path) as image:
            assert image.width >= 500
            assert len(image.convert("RGB").getcolors(1 << 16) or ()) > 10  # something is drawn


def test_drawing_again_gives_the_same_bytes(figures, tmp_path, monkeypatch):
    name = "samplers.png"  # a random one
    monkeypatch.setattr(illustrations, "DRAWINGS", {name: DRAWINGS[name]})
    (again,) = illustrations.draw_all(tmp_path)
    assert again.read_bytes() == (figures / name).read_bytes()


@pytest.mark.parametrize("timesteps", [500, 1000])
def test_report_says_where_the_linear_path_ends(timesteps, report):
    path = VPLinear(timesteps)
    last = float(path.sigmas[-1])
    ratio = f"{last**-2:.2e}".replace("e-0", "e-")
    assert f"| {timesteps} | {last:.1f} | {ratio} | {last / math.sqrt(3 * 64 * 64):.3g} |" in report


@pytest.mark.parametrize("path", [VPLinear(), VPCosine(), VPSigmoid(), VPSDE(), SubVP(), VE(), EDM(), Flow()])
def test_report_says_between_which_noise_levels_each_path_trains(path, report):
    names: dict[type, str] = {
        VPLinear: "vp-linear",
        VPCosine: "vp-cosine",
        VPSigmoid: "vp-sigmoid",
        VPSDE: "vp-sde",
        SubVP: "sub-vp",
    }
    name = names.get(type(path), type(path).__name__.lower())
    table = report.split("| `path` | $t$ in training |")[1].split("```")[0]
    (row,) = (line for line in table.splitlines() if line.startswith(f"| `{name}` |"))
    said = [float(cell) for cell in row.strip("| ").split(" | ")[-2:]]
    assert said == pytest.approx(list(path.sigma_range()), rel=3e-3)


def test_report_says_how_large_the_networks_are(report):
    for name in ("demo", "celeba256-ddpm"):
        params = load_recipe(name).params
        with torch.device("meta"):
            size, attributes = params.preprocess.image_size, params.train.attributes
            config = UNetConfig(image_size=size, **params.train.network.model_dump(), attributes=attributes)
            network = UNet(config)
        assert f" {sum(weights.numel() for weights in network.parameters()):,} " in report


def test_report_shows_the_committed_figures(report):
    for name in DRAWINGS:
        assert f"](docs/figures/{name})" in report
        with Image.open(ROOT / "docs" / "figures" / name) as image:
            assert image.format == "PNG"

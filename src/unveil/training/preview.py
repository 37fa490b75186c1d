"""Previews of a training: samples of the averaged network, from noise that is the same in every preview."""

from pathlib import Path

from unveil.data.pixels import to_uint8
from unveil.diffusion.config import Sampler
from unveil.diffusion.paths import NoisePath
from unveil.diffusion.sampling import draw
from unveil.figures import save_grid
from unveil.precision import autocast
from unveil.training.loop import Trainer

FACES = 24
COLUMNS = 8
# A preview need not be good, only quick and on any path: ten Heun steps from nearly pure noise, or from as much of
# it as the path has.
SAMPLER = Sampler(sampler="heun", steps=10, grid="karras", sigma_min=0.03, sigma_max=80.0)


def preview_sampler(path: NoisePath) -> Sampler:
    """The previews' sampler, within the noise levels that the path has and the network is trained on."""
    least, greatest = path.sigma_range()
    sigma_max = min(SAMPLER.sigma_max, greatest)
    return SAMPLER.replace(sigma_min=max(min(SAMPLER.sigma_min, sigma_max / 10), least), sigma_max=sigma_max)


def draw_preview(trainer: Trainer, size: int, folder: Path) -> Path:
    """Save a grid of samples of ``size`` pixels as a PNG that is named by the images seen; returns its path."""
    path = folder / f"{trainer.images_seen:09d}.png"
    with trainer.averaged():
        *_, last = draw(
            trainer.denoiser,
            preview_sampler(trainer.denoiser.path),
            seed=0,
            ids=range(FACES),
            shape=(3, size, size),
            context=lambda: autocast(trainer.config.precision, trainer.device),
            workers=trainer.workers,
        )
    save_grid(to_uint8(last.x).cpu(), COLUMNS, path)
    return path

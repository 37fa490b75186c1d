"""The training loop. It yields what happens; the caller prints, logs and draws."""

import hashlib
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from unveil.data.batches import DeviceBatches
from unveil.diffusion.denoiser import Denoiser
from unveil.diffusion.objectives import Objective, denoising_loss
from unveil.errors import UnveilError
from unveil.training.checkpoint import Checkpoints
from unveil.training.ema import EMA
from unveil.training.precision import autocast


@dataclass(frozen=True)
class TrainingConfig:
    """How to train; lengths and intervals in images, so that they do not depend on the batch size.

    Attributes:
        seed: of the noise and the noise levels.
        images: length of training.
        lr: Adam's learning rate after warm-up.
        betas: Adam's.
        warmup_images: the learning rate rises linearly over so many images.
        gradient_clip: largest norm of the gradient; 0 = none.
        ema_half_life_images, ema_rampup: see :class:`unveil.training.ema.EMA`.
        precision: fp32, bf16 or fp16.
        input_perturbation: share of unit noise that is added to the noise of the network's input; 0 = none. See
            :func:`unveil.diffusion.objectives.denoising_loss`.
        log_every_images, preview_every_images, checkpoint_every_images: intervals; 0 = never.
    """

    seed: int
    images: int
    lr: float
    betas: tuple[float, float]
    warmup_images: int
    gradient_clip: float
    ema_half_life_images: float
    ema_rampup: float
    precision: str
    log_every_images: int
    preview_every_images: int = 0
    checkpoint_every_images: int = 0
    input_perturbation: float = 0.0


@dataclass(frozen=True)
class Progress:
    """The state of training at one point of the curves.

    Attributes:
        images: images seen.
        loss: mean over the images since the last point.
        grad_norm: mean norm of the gradient, before clipping, since the last point; without the steps that
            fp16's scaling left out because their gradient overflowed.
        lr: learning rate of the last step.
        images_per_second: since the last point.
        seconds_left: estimate at the mean speed of this process.
        preview: whether a preview grid is due.
    """

    images: int
    loss: float
    grad_norm: float
    lr: float
    images_per_second: float
    seconds_left: float
    preview: bool


class Trainer:
    """A denoiser in training: network, optimizer, averaged weights and the number of steps made.

    The noise of step k, dropout's included, is a function of (seed, k) alone, and so is its batch: a run that was
    taken up again from a checkpoint does what the uninterrupted one does, bit for bit on one machine.

    Args:
        denoiser: on its device; its network's parameters are trained.
        objective: noise levels and weights.
        batches: training images on the same device.
        config: how to train.
        checkpoints: where to keep scratch checkpoints; None = nowhere.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        objective: Objective,
        batches: DeviceBatches,
        config: TrainingConfig,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self.denoiser = denoiser
        self.objective = objective
        self.batches = batches
        self.config = config
        self.checkpoints = checkpoints
        self.step = 0
        self.points: list[Progress] = []  # all of the curves so far, those before a checkpoint included
        self.network = denoiser.network
        self.parameters = list(self.network.parameters())
        self.device = self.parameters[0].device
        self.optimizer = torch.optim.Adam(self.parameters, lr=config.lr, betas=config.betas, fused=True)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.ema = EMA(self.parameters, config.ema_half_life_images, config.ema_rampup)
        self.total_steps = -(-config.images // batches.batch_size)

    @property
    def images_seen(self) -> int:
        """Images seen so far."""
        return self.step * self.batches.batch_size

    def run(self) -> Iterator[Progress]:
        """Train to the end from where it stands, yielding a point of the curves now and then.

        Raises:
            UnveilError: if the loss or the weights are no longer finite; it names the step and the last good
                checkpoint.
        """
        self.denoiser.train()
        losses: list[Tensor] = []
        norms: list[Tensor] = []
        start = mark = time.perf_counter()
        first_step, marked_step = self.step, self.step
        while self.step < self.total_steps:
            loss, norm = self._step()
            losses.append(loss)
            norms.append(norm)
            preview = self._due(self.config.preview_every_images)
            last = self.step == self.total_steps
            checkpoint = self._due(self.config.checkpoint_every_images) and not last
            if self._due(self.config.log_every_images) or preview or checkpoint or last:
                mean_loss = torch.stack(losses).mean().item()
                self._check(mean_loss)
                now = time.perf_counter()
                point = Progress(
                    images=self.images_seen,
                    loss=mean_loss,
                    grad_norm=_mean_of_finite(norms),
                    lr=self._lr(),
                    images_per_second=(self.step - marked_step) * self.batches.batch_size / (now - mark),
                    seconds_left=(self.total_steps - self.step) * (now - start) / (self.step - first_step),
                    preview=preview,
                )
                self.points.append(point)
                yield point
                losses, norms, mark, marked_step = [], [], time.perf_counter(), self.step
            if checkpoint:
                self.save()

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The network, in evaluation mode, with the averaged weights in place of its own for the while."""
        raw = [parameter.detach().clone() for parameter in self.parameters]
        self.ema.copy_to(self.parameters)
        self.denoiser.eval()
        try:
            yield self.network
        finally:
            self.denoiser.train()
            with torch.no_grad():
                for parameter, value in zip(self.parameters, raw, strict=True):
                    parameter.copy_(value)

    def save(self) -> None:
        """Write a scratch checkpoint of everything that the next step depends on."""
        if self.checkpoints is None:
            return
        tensors: dict[str, Tensor] = {}
        for number, (parameter, average) in enumerate(zip(self.parameters, self.ema.parameters, strict=True)):
            tensors[f"parameter.{number}"] = parameter.detach()
            tensors[f"ema.{number}"] = average
            for name, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"adam.{name}.{number}"] = value
        facts = {"scaler": self.scaler.state_dict(), "points": [asdict(point) for point in self.points]}
        self.checkpoints.save(self.step, tensors, facts)

    def resume(self) -> bool:
        """Take up the newest whole checkpoint from before the end; False if there is none.

        Raises:
            UnveilError: if it belongs to another network.
        """
        found = self.checkpoints.load(before=self.total_steps) if self.checkpoints is not None else None
        if self.checkpoints is None or found is None:
            return False
        tensors, facts = found
        shapes = {name: tensor.shape for name, tensor in tensors.items() if name.startswith("parameter.")}
        if shapes != {f"parameter.{number}": parameter.shape for number, parameter in enumerate(self.parameters)}:
            raise UnveilError(
                f"{self.checkpoints.folder}: its checkpoints are of another network than this version builds; "
                "remove the folder to start anew"
            )
        with torch.no_grad():
            for number, (parameter, average) in enumerate(zip(self.parameters, self.ema.parameters, strict=True)):
                parameter.copy_(tensors[f"parameter.{number}"])
                average.copy_(tensors[f"ema.{number}"])
                self.optimizer.state[parameter] = {
                    name: tensors[f"adam.{name}.{number}"].to(self.device) for name in ("step", "exp_avg", "exp_avg_sq")
                }
        self.scaler.load_state_dict(facts["scaler"])
        self.points = [Progress(**point) for point in facts["points"]]
        self.step = facts["step"]
        return True

    def _step(self) -> tuple[Tensor, Tensor]:
        """One step of the optimizer: returns the mean loss and the gradient's norm."""
        config = self.config
        x0 = self.batches.batch(self.step)
        generator = torch.Generator(self.device).manual_seed(_step_seed("noise", config.seed, self.step))
        sigma = self.objective.sample_sigma(len(x0), generator)
        noise = torch.randn(x0.shape, generator=generator, device=self.device)
        perturbation = None
        if config.input_perturbation:
            perturbation = config.input_perturbation * torch.randn(x0.shape, generator=generator, device=self.device)
        dropout_seed = _step_seed("dropout", config.seed, self.step)
        with _global_seed(dropout_seed, self.device), autocast(config.precision, self.device):
            loss = denoising_loss(self.denoiser, self.objective, x0, sigma, noise, perturbation).mean()
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, config.gradient_clip or math.inf)
        self.step += 1
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.ema.update(self.parameters, self.batches.batch_size, self.images_seen)
        return loss.detach(), norm.detach()

    def _lr(self) -> float:
        """Linear warm-up, then constant."""
        return self.config.lr * min(1.0, self.images_seen / max(self.config.warmup_images, 1))

    def _due(self, interval: int) -> bool:
        """Whether the last step crossed a multiple of ``interval`` images."""
        if interval == 0:
            return False
        return self.images_seen // interval > (self.images_seen - self.batches.batch_size) // interval

    def _check(self, loss: float) -> None:
        if not math.isfinite(loss):
            found = f"the loss became {loss}"
        elif not torch.stack([parameter.detach().isfinite().all() for parameter in self.parameters]).all():
            found = "the weights became infinite or NaN"  # the next loss will show it, but a checkpoint must not
        else:
            return
        newest = self.checkpoints.newest() if self.checkpoints is not None else None
        good = f"the last good checkpoint is {newest}" if newest is not None else "there is no checkpoint yet"
        raise UnveilError(
            f"train: {found} by step {self.step} ({self.images_seen} images); {good}; "
            "try a lower train.lr, train.gradient_clip 1.0 or train.precision fp32"
        )


def _step_seed(purpose: str, seed: int, step: int) -> int:
    """A seed that differs in its low 32 bits too: PyTorch's CPU generator takes no more."""
    digest = hashlib.sha256(f"{purpose} {seed} {step}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


@contextmanager
def _global_seed(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the generators that dropout draws from, for the while."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _mean_of_finite(values: list[Tensor]) -> float:
    together = torch.stack(values)
    return together[together.isfinite()].mean().item()

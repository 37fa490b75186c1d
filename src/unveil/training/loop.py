"""The training loop. It yields what happens; the caller prints, logs and draws."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from unveil.data.augmentation import Transformations, augment
from unveil.data.batches import Batch, Batches
from unveil.data.pixels import to_float
from unveil.diffusion.denoiser import Denoiser
from unveil.diffusion.loss import Draws, Loss
from unveil.distributed import Processes
from unveil.errors import UnveilError
from unveil.networks.condition import Condition
from unveil.precision import autocast
from unveil.seeds import step_seed
from unveil.training.checkpoint import Checkpoints
from unveil.training.config import Training
from unveil.training.ema import build_averages
from unveil.training.optimization import build_optimizer, learning_rate
from unveil.training.progress import Progress, Record, failure
from unveil.weights import WeightsChoice
from unveil.workers import ALONE, Workers

ONE_PROCESS = Processes()


@dataclass(eq=False, repr=False)
class Trainer:
    """A denoiser in training: network, optimizer, averaged weights and the number of steps made.

    The noise of step k, dropout's included, is a function of (seed, k) alone, and so is its batch: a run that was
    taken up again from a checkpoint does what the uninterrupted one does, bit for bit on one machine.

    Attributes:
        denoiser: on its device; its network's parameters are trained.
        loss: what is drawn for an image, and how its error counts.
        batches: training images on the same device.
        config: how to train, with the precision that was chosen.
        checkpoints: where to keep scratch checkpoints; None = nowhere.
        held_out: uint8 images on the device, for the validation loss; None = there are none.
        workers: threads that share the work of this process, where it is the only one; how a batch is divided among
            them changes no more than rounding. A network with dropout has one: its masks come from one generator.
        processes: those that share the work. Each computes its part of every batch; all have the same weights, and
            the one of rank 0 writes the checkpoints. How the batches are divided changes no more than rounding,
            and the masks of dropout.
        optimizer_precision: of the optimizer's products, fp32 or bf16.
    """

    denoiser: Denoiser
    loss: Loss
    batches: Batches
    config: Training
    checkpoints: Checkpoints | None = None
    held_out: Batch | None = None
    processes: Processes = ONE_PROCESS
    workers: Workers = ALONE
    optimizer_precision: str = "fp32"

    def __post_init__(self) -> None:
        config = self.config
        drops = any(isinstance(part, nn.Dropout) and part.p > 0 for part in self.denoiser.modules())
        if self.workers.count > 1 and drops:
            raise ValueError(f"found {self.workers.count} threads for a network with dropout, expected one")
        self.saved: Path | None = None  # the last checkpoint that this process wrote
        self.saved_step = 0
        self.failures: list[OSError] = []  # of writing scratch; whoever tells of them empties it
        self.step = 0
        self.seconds = 0.0  # of all processes that had a part in it
        self.points: list[Progress] = []  # all of the curves so far, those before a checkpoint included
        self.network = self.denoiser.network
        self.parameters = list(self.network.parameters())
        self.device = self.parameters[0].device
        self.optimizer = build_optimizer(config, self.parameters, self.optimizer_precision, self.workers)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.averages = build_averages(config, self.parameters)
        self.snapshots: dict[str, str] = {}  # those stored so far, see Checkpoints.save_snapshot
        self.total_steps = -(-config.images // self.batches.batch_size)
        self.part = self.processes.part(self.batches.batch_size)
        alone = self.processes.count == 1
        self.model: nn.Module = self.denoiser if alone else DistributedDataParallel(self.denoiser)
        self._since = Record()  # what happened since the last point

    @property
    def images_seen(self) -> int:
        """Images seen so far."""
        return self.step * self.batches.batch_size

    @property
    def finished(self) -> bool:
        """Whether all steps are made, or the time is up."""
        limit = 60 * self.config.max_minutes
        return self.step >= self.total_steps or (0 < limit <= self.seconds)

    def run(self, stop: Callable[[], bool] = lambda: False) -> Iterator[Progress]:
        """Train to the end from where it stands, yielding a point of the curves now and then.

        Args:
            stop: asked after every step; if true in any process, a checkpoint is written and the iteration ends,
                unfinished.

        Raises:
            UnveilError: if the loss or the weights are no longer finite, or the loss is far above what it was; it
                names the step and the last good checkpoint.
        """
        self.denoiser.train()
        start = mark = time.perf_counter()
        first_step, marked_step, seconds = self.step, self.step, self.seconds
        if self.finished and self._since.losses:  # resumed with less time than it had already
            yield self._point(0.0, 0.0, preview=False, validate=self.held_out is not None)
        while not self.finished:
            self._since.add(*self._step())
            stopped, self.seconds = self.processes.agree(stop(), seconds + time.perf_counter() - start)
            preview = self._due(self.config.preview_every_images)
            checkpoint = self._due(self.config.checkpoint_every_images) and not self.finished
            validate = self.held_out is not None and (self._due(self.config.validate_every_images) or self.finished)
            if self._due(self.config.log_every_images) or preview or checkpoint or validate or self.finished:
                self._check(self._since.mean_loss())
                now = time.perf_counter()
                yield self._point(
                    (self.step - marked_step) * self.batches.batch_size / (now - mark),
                    self._seconds_left((now - start) / (self.step - first_step)),
                    preview=preview,
                    validate=validate,
                )
                mark, marked_step = time.perf_counter(), self.step
            if self._due(self.config.snapshot_every_images):
                self.snapshot()
            if checkpoint:
                self.save()
            if stopped and not self.finished:
                self.save()
                return
        self.snapshot()

    def _point(self, images_per_second: float, seconds_left: float, *, preview: bool, validate: bool) -> Progress:
        """Add a point to the curves, of what happened since the last one."""
        point = Progress(
            images=self.images_seen,
            loss=self._since.mean_loss(),
            grad_norm=self._since.mean_norm(),
            lr=learning_rate(self.config, self.images_seen),
            images_per_second=images_per_second,
            seconds_left=seconds_left,
            preview=preview,
            loss_by_sigma=self._since.by_sigma(),
            validation_loss=self.validation_loss() if validate else None,
            minutes=self.seconds / 60,
        )
        self.points.append(point)
        self._since = Record()
        return point

    def validation_loss(self) -> float:
        """Loss of the averaged weights on the held-out images, at noise that is the same every time.

        The network is told nothing of these images. The size of a batch has a part in the draws.

        Raises:
            ValueError: if there are none.
        """
        if self.held_out is None:
            raise ValueError("no held-out images; expected Trainer(..., held_out=Batch(images))")
        loss = self.loss.plain()
        generator = torch.Generator(self.device).manual_seed(step_seed("validation", self.config.seed, 0))
        size = self.batches.batch_size

        @torch.no_grad()
        def losses_of(part: tuple[Tensor, Draws]) -> Tensor:
            with autocast(self.config.precision, self.device):
                return loss(self.denoiser, *part)

        losses: list[Tensor] = []
        with self.averaged():
            for images in self.held_out.images.split(size * self.workers.count):
                parts = [to_float(part) for part in images.split(size)]
                losses += self.workers.map(losses_of, [(part, loss.draw(part, generator)) for part in parts])
        return torch.cat(losses).mean().item()

    @contextmanager
    def averaged(self, choice: WeightsChoice = WeightsChoice()) -> Iterator[nn.Module]:
        """The network, in evaluation mode, with the averaged weights in place of its own for the while."""
        raw = [parameter.detach().clone() for parameter in self.parameters]
        self.averages[choice].copy_to(self.parameters)
        self.denoiser.eval()
        try:
            yield self.network
        finally:
            self.denoiser.train()
            with torch.no_grad():
                for parameter, value in zip(self.parameters, raw, strict=True):
                    parameter.copy_(value)

    def snapshot(self) -> None:
        """Store the power-function averages as they are now, from which others are made after training."""
        names = [name for name, _ in self.network.named_parameters()]
        averages = {
            choice.value: dict(zip(names, average.parameters, strict=True))
            for choice, average in self.averages.items()
            if choice.kind == "power"
        }
        if self.checkpoints is None or not self.processes.is_main or not averages:
            return
        with self._going_on():
            self.snapshots |= self.checkpoints.save_snapshot(self.images_seen, averages)

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        """Scratch that cannot be written, such as on a full disk, is no reason to stop."""
        try:
            yield
        except OSError as error:
            self.failures.append(error)

    def save(self) -> None:
        """Write a scratch checkpoint of everything that the next step depends on; else ``failures`` says why not."""
        if self.checkpoints is None or not self.processes.is_main:
            return
        tensors = self._weights() | self._since.tensors()
        for number, parameter in enumerate(self.parameters):
            state = self.optimizer.state.get(parameter, {})
            tensors |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
        facts = {
            "snapshots": self.snapshots,
            "scaler": self.scaler.state_dict(),
            "points": [asdict(point) for point in self.points],
            "seconds": self.seconds,
        }
        with self._going_on():
            self.saved = self.checkpoints.save(self.step, tensors, facts)
            self.saved_step = self.step

    def _weights(self) -> dict[str, Tensor]:
        """The weights and all averages of them, by their names in a checkpoint: themselves, not copies."""
        averages = {str(choice): average.parameters for choice, average in self.averages.items()}
        named: dict[str, Sequence[Tensor]] = {"parameter": self.parameters, **averages}
        return {f"{name}.{n}": weight.detach() for name, weights in named.items() for n, weight in enumerate(weights)}

    def resume(self) -> bool:
        """Take up the newest whole checkpoint from before the end; False if there is none.

        Raises:
            UnveilError: if it belongs to another network, or processes found different ones.
        """
        if self.checkpoints is None:
            return False
        tensors, facts = self.checkpoints.load(before=self.total_steps) or ({}, {"step": 0, "snapshots": {}})
        step = facts["step"]
        if self.processes.agree(step, -step) != [step, -step]:
            raise UnveilError(
                f"train: this process found a checkpoint of step {step}, another one of another step; expected a "
                "project folder that all machines share"
            )
        if self.processes.is_main:
            self.checkpoints.go_back(step, facts["snapshots"])
        if not tensors:
            return False
        shapes = {name: tensor.shape for name, tensor in tensors.items() if name.startswith("parameter.")}
        if shapes != {f"parameter.{number}": parameter.shape for number, parameter in enumerate(self.parameters)}:
            raise UnveilError(
                f"{self.checkpoints.folder}: its checkpoints are of another network than this version builds; "
                "remove the folder to start anew"
            )
        for name, weight in self._weights().items():
            weight.copy_(tensors[name])
        for number, parameter in enumerate(self.parameters):
            prefix = f"optimizer.{number}."
            self.optimizer.state[parameter] = {
                name.removeprefix(prefix): _laid_out(value.to(self.device), parameter)
                for name, value in tensors.items()
                if name.startswith(prefix)
            }
        self.snapshots = dict(facts["snapshots"])
        self.scaler.load_state_dict(facts["scaler"])
        self.points = [Progress(**point) for point in facts["points"]]
        self._since = Record.of(tensors, self.device)
        self.seconds = facts["seconds"]
        self.step = step
        return True

    def _step(self) -> tuple[Tensor, Tensor, Tensor]:
        """One step of the optimizer: returns the loss and the noise level of each image, and the gradient's norm."""
        config = self.config
        images, condition = self._augmented(self.batches.batch(self.step))
        generator = torch.Generator(self.device).manual_seed(step_seed("noise", config.seed, self.step))
        draws = self.loss.draw(images, generator, self.batches.batch_size, self.part)
        self.optimizer.zero_grad(set_to_none=True)
        purpose = "dropout" if self.processes.is_main else f"dropout {self.processes.rank}"
        with _global_seed(step_seed(purpose, config.seed, self.step), self.device):
            losses = self._gradient(images, draws, condition)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, config.gradient_clip or math.inf)
        self.step += 1
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.images_seen)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        for average in self.averages.values():
            average.update(self.parameters, self.batches.batch_size, self.images_seen)
        whole = torch.zeros(2, self.batches.batch_size, device=self.device)  # of all processes
        whole[:, self.part] = torch.stack([losses, draws.sigma])
        losses, sigma = self.processes.sum(whole)
        return losses, sigma, norm.detach()

    def _augmented(self, batch: Batch) -> tuple[Tensor, Condition | None]:
        """This process's images of the step, transformed at random, and what the network is told of them."""
        images, labels = batch.images, None
        if self.config.augment:
            generator = torch.Generator().manual_seed(step_seed("augment", self.config.seed, self.step))
            drawn = Transformations.draw(self.batches.batch_size, self.config.augment, generator)
            images, labels = augment(images, drawn, self.part), drawn.labels()[self.part]
        generator = torch.Generator().manual_seed(step_seed("attributes", self.config.seed, self.step))
        rates = self.config.condition_dropout, self.config.attribute_dropout
        condition = Condition(labels, batch.attributes).dropped(*rates, generator, self.batches.batch_size, self.part)
        return images, condition.to(self.device) if len(condition) else None

    def _gradient(self, images: Tensor, draws: Draws, condition: Condition | None) -> Tensor:
        """The gradient of the batch's mean loss, over all processes; returns the losses of this one's images."""

        def share(here: slice) -> tuple[Tensor, Tensor]:
            told = condition[here] if condition is not None else None
            with autocast(self.config.precision, self.device):
                losses = self.loss(self.model, images[here], draws[here], told)
            # DistributedDataParallel divides the sum of the processes' gradients by their number.
            factor = self.processes.count / self.batches.batch_size
            return losses.detach(), self.scaler.scale(losses.sum() * factor)

        def apart(here: slice) -> tuple[Tensor, tuple[Tensor | None, ...]]:
            """Threads cannot add to one gradient at once."""
            losses, mean = share(here)
            return losses, torch.autograd.grad(mean, self.parameters, allow_unused=True)

        size = -(-len(images) // (self.config.gradient_accumulation * self.workers.count))
        places = [slice(start, start + size) for start in range(0, len(images), size)]
        found = []
        if isinstance(self.model, DistributedDataParallel):
            for here in places:  # the processes exchange gradients once, with the last part's
                with nullcontext() if here is places[-1] else self.model.no_sync():
                    losses, mean = share(here)
                    mean.backward()
                found.append(losses)
            return torch.cat(found)
        for start in range(0, len(places), self.workers.count):
            for losses, gradients in self.workers.map(apart, places[start:][: self.workers.count]):
                found.append(losses)
                for parameter, gradient in zip(self.parameters, gradients, strict=True):
                    if gradient is not None:
                        _add(parameter, gradient)
        return torch.cat(found)

    def _seconds_left(self, seconds_a_step: float) -> float:
        left = (self.total_steps - self.step) * seconds_a_step
        limit = 60 * self.config.max_minutes
        return min(left, max(limit - self.seconds, 0.0)) if limit else left

    def _due(self, interval: int) -> bool:
        """Whether the last step crossed a multiple of ``interval`` images."""
        if interval == 0:
            return False
        return self.images_seen // interval > (self.images_seen - self.batches.batch_size) // interval

    def _check(self, loss: float) -> None:
        """Raise UnveilError where the training has failed."""
        found = failure(loss, self.points, self.parameters)
        if found is None:
            return
        newest = self.checkpoints.newest() if self.checkpoints is not None else None
        good = f"the last good checkpoint is {newest}" if newest is not None else "there is no checkpoint yet"
        raise UnveilError(
            f"train: {found} by step {self.step} ({self.images_seen} images); {good}; "
            "try a lower train.lr, train.gradient_clip 1.0 or train.precision fp32"
        )


def _laid_out(value: Tensor, like: Tensor) -> Tensor:
    """``value`` in memory as a parameter of its shape is, channels last or not: a fused optimizer wants them alike."""
    return torch.empty_like(like).copy_(value) if value.shape == like.shape else value


def _add(parameter: Tensor, gradient: Tensor) -> None:
    if parameter.grad is not None:
        parameter.grad += gradient
    elif gradient.stride() == parameter.stride():
        parameter.grad = gradient
    else:  # laid out otherwise, or one value that stands for many
        parameter.grad = torch.empty_like(parameter).copy_(gradient)


@contextmanager
def _global_seed(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the generators that dropout draws from, for the while."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield

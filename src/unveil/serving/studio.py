"""A model at work: it draws what is asked for, the same bytes as the sample stage."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import unveil
from unveil.data.pixels import to_uint8
from unveil.diffusion.config import Guidance, Sampler
from unveil.diffusion.denoiser import Denoiser
from unveil.diffusion.samplers import Counted, Step
from unveil.diffusion.sampling import NotDrawn, draw
from unveil.errors import UnveilError
from unveil.files import file_digest
from unveil.generation import asking, load_guided
from unveil.messages import chosen
from unveil.model import WEIGHTS_FILE, ModelConfig, load_denoiser
from unveil.networks.condition import Condition, told
from unveil.params import load_params
from unveil.precision import autocast, resolve_device, resolve_precision, set_tf32
from unveil.serving.request import Request, read_request
from unveil.training.preview import preview_sampler
from unveil.weights import WeightsChoice, parse_weights
from unveil.workers import workers

PARAMS_FILE = "params.yaml"
MOST_KEPT = 4  # denoisers in memory: other averages, other guides
LEAST_ROWS = 4  # for fewer oneDNN takes other kernels, whose float32 sums are rounded otherwise


@dataclass(eq=False)
class Studio:
    """One model, ready to draw. One thread at a time may use it.

    Attributes:
        folder: of the model.
        device: where it draws.
        model: its configuration.
        digest: SHA-256 of its weights.
        usual: the request that suits it.
        watch: called before every evaluation of a network; what it raises ends the drawing.
    """

    folder: Path
    device: torch.device
    model: ModelConfig
    digest: str
    usual: Request
    watch: Callable[[], object] = bool
    _denoisers: dict[tuple[Path, WeightsChoice], Denoiser] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path, device: str = "auto") -> "Studio":
        """Open the model in ``folder``; its usual settings are those of the params.yaml beside it, if that is its.

        Raises:
            UnveilError: as ``load_denoiser`` does, or if there is no such device.
        """
        where = resolve_device(device)
        set_tf32(False, where)  # as the sample stage
        model = ModelConfig.load(folder)
        studio = cls(folder, where, model, file_digest(folder / WEIGHTS_FILE), Request())
        studio.usual = read_request({"precision": resolve_precision("auto", where)} | studio._settings(), Request())
        studio.denoiser(studio.usual)
        return studio

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image."""
        return 3, self.model.network.image_size, self.model.network.image_size

    def request(self, values: Mapping[str, Any]) -> Request:
        """The usual request with other ``values``, checked.

        Raises:
            UnveilError: in one line, also for what does not go together with the model.
        """
        self.check(request := read_request(values, self.usual))
        return request

    def check(self, request: Request) -> None:
        """Refuse what does not go together with the model. Raises UnveilError, in one line."""
        for key, expected in request.misfits(self.model.diffusion):
            raise UnveilError(f"{key}: found {getattr(request, key)}, expected {expected}")
        resolve_precision(request.precision, self.device)
        if (request.attributes or request.switch) and not self.model.network.attributes:
            raise UnveilError(f"{self.folder}: a model that is told no attributes; train one with train.attributes")
        self.condition(request)
        try:
            chosen(request.switch, self.model.network.attributes)
        except ValueError as error:
            raise UnveilError(f"switch: {error}") from None

    def denoiser(self, request: Request) -> Counted:
        """What draws this request, as ``draw`` takes it: the model, with its guide if there is one.

        Raises:
            UnveilError: as ``load_guided`` does.
        """
        weights = parse_weights(request.weights) or WeightsChoice()
        return load_guided(self.folder, self.device, weights, request.only(Guidance), self._load)[0]

    def condition(self, request: Request) -> Condition | None:
        """What the network is told of each image; None for an unconditional model.

        Raises:
            UnveilError: for an attribute that it is not told.
        """
        names = self.model.network.attributes
        try:
            rows = told(request.attributes, names)[None] if names or request.attributes else None
        except ValueError as error:
            raise UnveilError(f"attributes: {error}") from None
        return asking(rows, request.seed, self.device)(request.ids)

    def how(self, request: Request) -> dict[str, Any]:
        """What else ``draw`` takes for this request: the condition and the arithmetic."""
        precision = resolve_precision(request.precision, self.device)

        def context() -> AbstractContextManager[object]:
            self.watch()
            return autocast(precision, self.device)

        return {"condition": self.condition(request), "context": context}

    def _load(self, folder: Path, device: torch.device | str, weights: WeightsChoice) -> Denoiser:
        """A model's denoiser; the last few are kept in memory."""
        if (denoiser := self._denoisers.pop((folder, weights), None)) is None:
            denoiser = load_denoiser(folder, device, weights)
            denoiser.network = Padded(denoiser.network)
        self._denoisers[folder, weights] = denoiser
        while len(self._denoisers) > MOST_KEPT:
            del self._denoisers[next(iter(self._denoisers))]
        return denoiser

    def steps(self, request: Request) -> Iterator[Step]:
        """Every step of the drawing, on the CPU; of the first the estimate is the noise itself.

        Raises:
            NotDrawn: if the sampler fails, or the images are not finite.
        """
        denoiser, numbers = self.denoiser(request), (request.seed, request.ids, self.shape)
        with workers(self.device, request.count) as threads:
            how = {**self.how(request), "workers": threads}
            yield from checked(draw(denoiser, request.only(Sampler), *numbers, **how), request.ids)

    def images(self, request: Request) -> Tensor:
        """The images of a request's picture, in order: uint8 [n, 3, H, W]. Raises NotDrawn as ``steps`` does."""

        def drawn(part: Request) -> Tensor:
            *_, last = self.steps(part)
            return to_uint8(last.x)

        return arranged([[drawn(part) for part in group] for group in request.groups()])

    def facts(self, request: Request) -> dict[str, Any]:
        """What a picture says of itself: all that is needed to draw it again."""
        facts = {"unveil": unveil.__version__, "model": self.digest, **self.model.data, **request.read_values()}
        if request.guides and request.guide is not None and parse_weights(request.guide) is None:
            facts |= {"guide_sha256": file_digest(Path(request.guide) / WEIGHTS_FILE)}
        return facts

    def _settings(self) -> dict[str, Any]:
        """Sampler, weights and precision as the params.yaml beside the model has them, if that describes it."""
        with suppress(UnveilError, OSError):
            params = load_params(self.folder.resolve().parent / PARAMS_FILE, fill=True)
            self.model.check_diffusion(params.train.diffusion, self.folder)
            sample = params.sample
            precision = resolve_precision(sample.precision, self.device)
            settings = {**sample.only(Sampler).model_dump(), **sample.only(Guidance).model_dump()}
            return settings | {"weights": sample.weights, "precision": precision}
        return preview_sampler(load_denoiser(self.folder).path).model_dump()


def checked(steps: Iterator[Step], ids: Sequence[int]) -> Iterator[Step]:
    """The steps of a drawing or an edit, on the CPU.

    Raises:
        NotDrawn: if the sampler fails, or the images are not finite.
        UnveilError: in one line, for settings with which there is no such drawing.
    """
    try:
        for step in steps:
            last = replace(step, x=step.x.cpu(), denoised=step.denoised.cpu())
            yield last
    except ArithmeticError as error:
        raise NotDrawn(ids, error) from None
    except ValueError as error:
        raise UnveilError(str(error)) from None
    if not torch.isfinite(last.x).all():
        raise NotDrawn(ids)


def arranged(groups: Sequence[Sequence[Tensor]]) -> Tensor:
    """Images [n, 3, H, W] of each part of each group, so that the ways of one image stand side by side."""
    return torch.cat([torch.stack(list(group), dim=1).flatten(0, 1) for group in groups])


class Padded(nn.Module):
    """A network whose estimate of an image does not depend on how few others are in the batch, on a CPU.

    Fewer than ``LEAST_ROWS`` images are repeated up to so many.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, c_noise: Tensor, *told: Any) -> Tensor:
        """As the network does."""
        if len(x) >= LEAST_ROWS or x.device.type != "cpu":
            return self.network(x, c_noise, *told)
        rows = torch.arange(LEAST_ROWS) % len(x)
        return self.network(x[rows], c_noise[rows], *(part[rows] for part in told))[: len(x)]

"""The gradient of a batch that goes through the network in parts, by turns or in threads."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from unveil.workers import Workers


def add_gradients(
    share: Callable[[slice], tuple[Tensor, Tensor]],
    places: Sequence[slice],
    model: nn.Module,
    parameters: Sequence[Tensor],
    workers: Workers,
) -> Tensor:
    """Add the gradient of a batch to that of the parameters; returns the losses of its images, float32 [n].

    Args:
        share: the losses of the images at a place, and that part's share of the loss of the batch.
        places: the parts, in order.
        model: what ``share`` evaluates; several processes exchange gradients once, with the last part's.
        parameters: the model's.
        workers: threads that take a part each.
    """

    def backward(here: slice) -> Tensor:
        losses, mean = share(here)
        mean.backward()
        return losses

    def apart(here: slice) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """Threads cannot add to one gradient at once."""
        losses, mean = share(here)
        return losses, torch.autograd.grad(mean, parameters, allow_unused=True)

    if isinstance(model, DistributedDataParallel):
        with model.no_sync():
            found = [backward(here) for here in places[:-1]]
        return torch.cat([*found, backward(places[-1])])
    found = []
    for start in range(0, len(places), workers.count):
        for losses, gradients in workers.map(apart, places[start:][: workers.count]):
            found.append(losses)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    _add(parameter, gradient)
    return torch.cat(found)


def _add(parameter: Tensor, gradient: Tensor) -> None:
    if parameter.grad is not None:
        parameter.grad += gradient
    elif gradient.stride() == parameter.stride():
        parameter.grad = gradient
    else:  # laid out otherwise, or one value that stands for many
        parameter.grad = torch.empty_like(parameter).copy_(gradient)

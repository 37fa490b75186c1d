"""What a network is told of an image beside its noise level, as one value from the batch to the embedding."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unveil.messages import chosen


@dataclass(frozen=True)
class Condition:
    """What is known of n images.

    >>> condition = Condition(attributes=torch.tensor([[1, -1], [-1, 0]]))
    >>> len(condition), condition[1:].attributes
    (2, tensor([[-1,  0]]))
    >>> condition.dropped(1.0, 0.0, torch.Generator()).attributes
    tensor([[0, 0],
            [0, 0]])

    Attributes:
        augmentation: how each was augmented, float [n, labels]; zeros say that nothing was done.
        attributes: what each shows, int8 or float [n, k]: 1 = it has the attribute, -1 = it has not, 0 = not told.
    """

    augmentation: Tensor | None = None
    attributes: Tensor | None = None

    def __len__(self) -> int:
        return next((len(part) for part in (self.augmentation, self.attributes) if part is not None), 0)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Condition":
        return Condition(*(None if part is None else change(part) for part in (self.augmentation, self.attributes)))

    def __getitem__(self, here: slice | Tensor) -> "Condition":
        return self._each(lambda part: part[here])

    def to(self, device: torch.device | str) -> "Condition":
        """The same on a device; a GPU is not waited for."""
        return self._each(lambda part: part.to(device, non_blocking=True))

    def taken(self, columns: Sequence[int | None]) -> "Condition":
        """With these columns of the attributes, in this order; None is a column that is not told."""
        if self.attributes is None:
            return self
        silent = torch.zeros_like(self.attributes[:, 0])
        found = [silent if column is None else self.attributes[:, column] for column in columns]
        return Condition(self.augmentation, torch.stack(found, dim=1))

    def dropped(
        self,
        together: float,
        single: float,
        generator: torch.Generator,
        images: int | None = None,
        part: slice = slice(None),
    ) -> "Condition":
        """With some attributes not told, so that a network learns to do without them (2207.12598).

        It so learns images of any choice of attributes, and of none. Augmentation is always told.

        Args:
            together: probability, in [0, 1], that all attributes of an image are dropped.
            single: share, in [0, 1], of the others that is dropped on average. That of an image lies evenly around it,
                as far as 0 or 1 allow: with 0.5 some images tell nearly all, others a single one, as requests do.
            generator: of the CPU, so that the same are dropped on every device.
            images: size of the batch of which this is a part; None = this is all of it.
            part: which of the batch's images these are. What is dropped of an image does not depend on the division.
        """
        if self.attributes is None:
            return self
        count = len(self) if images is None else images
        whole = torch.rand(count, 1, generator=generator) < together
        share = single + min(single, 1 - single) * (2 * torch.rand(count, 1, generator=generator) - 1)
        each = torch.rand(count, self.attributes.shape[1], generator=generator) < share
        dropped = (whole | each)[part].to(self.attributes.device, non_blocking=True)
        return Condition(self.augmentation, self.attributes.masked_fill(dropped, 0))


ATTRIBUTE_STD = 0.5  # of the first numbers of an attribute's vectors, of which several are added


class AugmentationEmbedding(nn.Linear):
    """How an image was augmented, as a vector to be added to the waves of its noise level (2206.00364, app. F.2).

    Float [B, labels] -> [B, channels]. Linear, without bias, of zeros at first: labels of zero say the same as none.
    """

    def __init__(self, labels: int, channels: int) -> None:
        super().__init__(labels, channels, bias=False)
        nn.init.zeros_(self.weight)


class AttributeEmbedding(nn.Linear):
    """What an image shows, as a vector to be added to the embedding of its noise level: int8 [B, k] -> [B, width].

    An attribute has one vector if it is there and another one if it is not; one that is not told adds nothing. As ADM's
    labels (2105.05233) they are added behind the layers of the noise level, and random at first: on the way through
    those layers, from zeros, a network learns what they mean several times slower.
    """

    def __init__(self, attributes: int, width: int) -> None:
        super().__init__(2 * attributes, width, bias=False)
        nn.init.normal_(self.weight, std=ATTRIBUTE_STD)

    def forward(self, attributes: Tensor) -> Tensor:
        """Embed attributes [B, k] in {-1, 0, 1}; what lies between tells a part of it."""
        values = attributes.to(self.weight.dtype)
        return super().forward(torch.cat([values.clamp_min(0), (-values).clamp_min(0)], dim=1))


def told(request: Sequence[str], names: Sequence[str]) -> Tensor:
    """What a request such as ``["Smiling", "-Wearing_Hat"]`` tells a network of these attributes: int8 [k].

    >>> told(["Smiling", "-Wearing_Hat"], ["Bald", "Smiling", "Wearing_Hat"])
    tensor([ 0,  1, -1], dtype=torch.int8)

    Raises:
        ValueError: for a name that is none of them, with the nearest, or that is asked for twice.
    """
    found = torch.zeros(len(names), dtype=torch.int8)
    for word, place in zip(request, chosen([word.removeprefix("-") for word in request], names), strict=True):
        found[place] = -1 if word.startswith("-") else 1
    return found


def check_room(condition: Condition | None, augmentation: int = 0, attributes: int = 0) -> None:
    """Refuse what a network has no room for: it could not know of it, and would learn something else.

    ``augmentation`` and ``attributes`` are how many numbers it takes of each; 0 = it is not told.

    Raises:
        ValueError: if there is a part that it does not take, or one of another width.
    """
    if condition is None:
        return
    parts = (("augmentation", condition.augmentation, augmentation), ("attributes", condition.attributes, attributes))
    for name, part, width in parts:
        if part is not None and part.shape[1:] != (width,):
            expected = f"[n, {width}]" if width else "None: the network was built without room for it"
            raise ValueError(f"condition.{name}: found {list(part.shape)}, expected {expected}")

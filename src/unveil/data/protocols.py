"""Protocols: how a face becomes a small square. Each published FID has one; numbers compare only within one.

============  ====================================  ==========================================  ================
protocol      crop of the 178 x 218 image           resize                                      images in train
============  ====================================  ==========================================  ================
ddim          128 x 128 at rows 57-185, cols 25-153  PIL bilinear (antialiased)                  train split
score-sde     central 140 x 140                     antialiased bilinear in float, rounded      train split
score-sde-tf  the same, JPEGs decoded by fast DCT   the same                                    train split
gan           central 148 x 148                     PIL bilinear (antialiased)                  train split
adm-ip        none: squashed to a square            OpenCV bilinear (not antialiased)           all images
squash        none: squashed to a square            PIL bilinear (antialiased)                  train split
============  ====================================  ==========================================  ================

Sources: DDIM (2010.02502) and Score SDE (2011.13456) by their published code, the GAN crop by the code of
the GAN and VAE literature, ADM-IP (2301.11706) by its published code, squash by torchvision's Resize((n, n)).

JPEGs are decoded by libjpeg-turbo's accurate DCT, as by Pillow and OpenCV. Score SDE's code decodes by TensorFlow,
which takes the fast DCT: score-sde-tf has its pixels, 1 to 2 levels from those of score-sde in the mean.
"""

from dataclasses import dataclass
from typing import Literal

from unveil.data.celeba import CANVAS

Resize = Literal["pil", "float", "aliased"]


@dataclass(frozen=True)
class Protocol:
    """One way from a decoded image to a training image.

    Attributes:
        name: as in params.yaml.
        crop: (left, top, width, height) in pixels of the 178 x 218 canvas; None takes the whole image.
        resize: ``pil`` antialiased in 8 bit as Pillow's bilinear; ``float`` the same filter in float, rounded
            once at the end; ``aliased`` as OpenCV's bilinear in 8 bit, which skips pixels when it shrinks.
        images: whether ``train`` holds the train split or, as in ADM-IP's numbers, every image.
        fast_dct: whether JPEGs are decoded by libjpeg-turbo's fast DCT, as by TensorFlow.
    """

    name: str
    crop: tuple[int, int, int, int] | None
    resize: Resize
    images: Literal["train", "all"] = "train"
    fast_dct: bool = False

    @property
    def decoder(self) -> str:
        """How JPEGs become pixels, in words."""
        return f"libjpeg-turbo, {'fast DCT (as TensorFlow)' if self.fast_dct else 'accurate DCT (as Pillow)'}"

    def describe(self) -> str:
        """One line for reports."""
        where = "the whole image" if self.crop is None else "{2} x {3} pixels at column {0}, row {1}".format(*self.crop)
        how = {
            "pil": "antialiased bilinear in 8 bit (Pillow)",
            "float": "antialiased bilinear in float",
            "aliased": "bilinear without antialiasing (OpenCV)",
        }[self.resize]
        which = "the train split" if self.images == "train" else "all images"
        return f"{where}, resized by {how}, train = {which}"


def _central(side: int) -> tuple[int, int, int, int]:
    width, height = CANVAS
    return (width - side) // 2, (height - side) // 2, side, side


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("ddim", (25, 57, 128, 128), "pil"),
        Protocol("score-sde", _central(140), "float"),
        Protocol("score-sde-tf", _central(140), "float", fast_dct=True),
        Protocol("gan", _central(148), "pil"),
        Protocol("adm-ip", None, "aliased", images="all"),
        Protocol("squash", None, "pil"),
    )
}

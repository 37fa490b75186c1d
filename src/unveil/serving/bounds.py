"""What a request of the page may cost, or one to a served model, so that nobody keeps the machine for an hour."""

from collections.abc import Callable, Sequence

from unveil.errors import UnveilError
from unveil.serving.request import Request
from unveil.serving.studio import LEAST_ROWS
from unveil.weights import parse_weights

MOST_IMAGES = 64
MOST_STEPS = 1000
MOST_PIXELS = 400_000_000  # through the network: 64 images of 64 x 64 pixels at 1,500 evaluations
MOST_BYTES = 20_000_000  # of an upload
MOST_WAITING = 8  # requests, the one at work included


def work(request: Request, size: int) -> int:
    """Pixels that go through the network for a request of images of ``size`` pixels a side, about."""
    rows = max(request.count, LEAST_ROWS)
    return rows * sum(part.evaluations for group in request.groups() for part in group) * size**2


def evaluations(request: Request, size: int) -> int:
    """Calls of the network after which a drawing is stopped, whatever was foreseen: twice what may be asked for."""
    return 2 * MOST_PIXELS // (max(request.count, LEAST_ROWS) * size**2)


def budget(request: Request, size: int) -> Callable[[], None]:
    """To be called before every evaluation of the network; raises UnveilError after too many."""
    left = evaluations(request, size)

    def spend() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise UnveilError("stopped: it takes more than may be asked for; raise rtol and atol, or ask less")

    return spend


def check_bounds(request: Request, size: int, guides: tuple[str | None, ...]) -> None:
    """Refuse what costs too much, or a guide that the page does not offer: any folder of this machine could be meant.

    Raises:
        UnveilError: in one line.
    """
    if request.steps > MOST_STEPS:
        raise UnveilError(f"steps: found {request.steps:,}, expected at most {MOST_STEPS:,}")
    check_together([request], size)
    if request.guide not in (None, *guides) and parse_weights(request.guide or "") is None:
        raise UnveilError("guide: found another folder than the server's, expected an average of the model's weights")


def check_together(requests: Sequence[Request], size: int) -> None:
    """Refuse requests that cost too much together. Raises UnveilError, in one line."""
    check_count(sum(request.count * sum(map(len, request.groups())) for request in requests))
    if (pixels := sum(work(request, size) for request in requests)) > MOST_PIXELS:
        raise UnveilError(
            f"count: found {pixels / 1e6:,.0f} million pixels to evaluate, expected at most {MOST_PIXELS / 1e6:,.0f} "
            "million; ask for fewer images or steps"
        )


def check_count(images: int) -> None:
    """Refuse too many images. Raises UnveilError, in one line."""
    if images > MOST_IMAGES:
        raise UnveilError(f"count: found {images:,} images, expected at most {MOST_IMAGES}; `unveil draw` makes more")

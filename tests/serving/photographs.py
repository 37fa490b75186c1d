"""The pictures of the page in docs/, made anew: ``python -m tests.serving.photographs http://127.0.0.1:8000/ docs``."""

import sys
import tempfile
from pathlib import Path

from PIL import Image
from tests.serving.browser import Browser, Page

IDLE = "document.querySelector('#working').hidden && document.querySelector('#current .sheet button')"
FACES = "#seed=3&count=12&attributes=Eyeglasses,Smiling&guidance=2"


def press(page: Page, selector: str) -> None:
    page.run(f"document.querySelector({selector!r}).click()")


def draw(page: Page) -> None:
    press(page, "#draw")
    page.until(IDLE)


def save(page: Page, path: Path) -> None:
    """A picture of at most 256 colours, which is a third of the bytes."""
    page.run("scrollTo(0, 0); document.activeElement.blur()")
    page.run("Promise.all([...document.images].map(image => image.decode().catch(() => 0)))")
    page.photograph(path)
    with Image.open(path) as image:
        image.convert("RGB").quantize(256).save(path, optimize=True)


def main(address: str, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as profile, Browser(Path(profile)) as browser:
        page = browser.open(address + FACES, 1200, 800)
        page.until(IDLE)
        save(page, folder / "play-faces.png")
        page.shape(390, 800, dark=True)
        save(page, folder / "play-phone.png")
        page.shape(1200, 800)
        page = browser.open(f"{address}#seed=3&count=6", 1200, 800)
        page.until(IDLE)
        page.click("#current .sheet button:nth-child(3)")
        press(page, "[data-use=inpaint]")
        page.until("!document.querySelector('#mask').hidden")
        press(page, "#brush")
        page.run("document.querySelector('#brush').value = 14; document.querySelector('#mask').scrollIntoView()")
        place = (
            "(box => [box.x, box.y, box.width, box.height])(document.querySelector('#mask').getBoundingClientRect())"
        )
        left, top, width, height = page.run(place)
        for row in (0.1, 0.2, 0.3):
            page.press(left + 0.2 * width, top + row * height)
            for share in range(20, 81, 4):
                page.move(left + share / 100 * width, top + row * height)
            page.release(left + 0.8 * width, top + row * height)
        page.fill("[name=count]", "4")
        draw(page)
        save(page, folder / "play-inpaint.png")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

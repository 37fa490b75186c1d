"""The page in a real browser: what a person does with it, from opening it to a server that was started again."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64decode
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.serving.browser import Browser, Page
from tests.serving.models import NETWORK, SIZE, save_conditional

from unveil.serving.studio import Studio

pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
]
STATUS = "document.querySelector('#status').textContent"
ERROR = "document.querySelector('#error').textContent"
SHEET = "document.querySelector('#current .sheet').firstChild"
FACES = "[...document.querySelectorAll('#current .sheet button img')]"
IDLE = "document.querySelector('#working').hidden"


class Running:
    """`unveil play` on a port of this machine."""

    def __init__(self, folder: Path, repository: Path, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}/"
        self._command = [sys.executable, "-m", "unveil", "play", "--models", str(folder), "--device", "cpu"]
        self._environment = os.environ | {"PYTHONPATH": str(repository / "src"), "OMP_NUM_THREADS": "1"}
        self._log = log

    def start(self) -> None:
        with self._log.open("a") as stream:
            command = [*self._command, "--port", str(self.port)]
            self._process = subprocess.Popen(command, env=self._environment, stdout=stream, stderr=subprocess.STDOUT)
        until = time.monotonic() + 300
        while True:
            assert self._process.poll() is None and time.monotonic() < until, self._log.read_text()
            try:
                with urllib.request.urlopen(f"{self.address}api/model", timeout=5):
                    return
            except (urllib.error.URLError, TimeoutError, ConnectionError):
                time.sleep(0.1)

    def stop(self) -> None:
        self._process.send_signal(signal.SIGINT)
        assert self._process.wait(60) in (0, 130, -signal.SIGINT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = NETWORK.replace(attributes=("Smiling", "Eyeglasses"))
    return save_conditional(tmp_path_factory.mktemp("project") / "models", network)


@pytest.fixture(scope="module")
def server(folder: Path, repository: Path) -> Iterator[Running]:
    server = Running(folder, repository, folder.parent / "log")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with Browser(tmp_path / "profile") as browser:
        yield browser


def pictures(page: Page) -> list[torch.Tensor]:
    """The pixels of what is shown, each uint8 [3, H, W]."""
    images = []
    for address in page.run(f"{FACES}.map(image => image.src)"):
        with Image.open(BytesIO(b64decode(address.partition(",")[2]))) as image:
            images.append(torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1))
    return images


def said(page: Page) -> str:
    text: str = page.run(
        "document.querySelector('#error').textContent || document.querySelector('#status').textContent"
    )
    return text


def drawn(page: Page, count: int) -> list[torch.Tensor]:
    """Press the button and wait for so many images."""
    page.run(f"window.before = {SHEET}")
    page.click("#draw")
    page.until(f"{IDLE} && {SHEET} !== window.before || {ERROR}")
    images = pictures(page)
    assert len(images) == count, said(page)
    return images


def test_from_opening_the_page_to_a_link_in_another_tab(server: Running, browser: Browser, folder: Path) -> None:
    page = browser.open(server.address)
    page.until(f"{FACES}.length === 1")
    studio = Studio.load(folder, "cpu")
    assert torch.equal(pictures(page)[0], studio.images(studio.usual)[0])
    # By keyboard: an attribute, then the button that draws.
    page.run("document.querySelector('[name=\"attribute Eyeglasses\"]:checked').focus()")
    page.key("ArrowRight")
    page.fill("[name=count]", "2")
    page.fill("[name=guidance]", "2")
    page.key("Enter")
    page.until(f"{FACES}.length === 2")
    assert page.run(f"{FACES}.map(image => image.alt)") == [
        f"Image {number} of seed 0: Eyeglasses, guidance 2" for number in (0, 1)
    ]
    asked = studio.request({"attributes": ["Eyeglasses"], "count": 2, "guidance": 2})
    glasses = studio.images(asked)
    assert torch.equal(torch.stack(pictures(page)), glasses)
    # An edit of the second face, then another part of it.
    page.click("#current .sheet button:nth-child(2)")
    page.click("[data-use=edit]")
    page.until("!document.querySelector('#slot-image img').hidden")
    page.fill("[name=count]", "1")
    page.fill("[name=steps]", "4")
    assert drawn(page, 1)[0].shape == (3, SIZE, SIZE)
    page.click("[value=inpaint]")
    page.fill("[name=steps]", "4")
    left, top, width, height = page.box("#mask")
    page.press(left + 0.9 * width, top + 0.1 * height)
    page.move(left + 0.9 * width, top + 0.9 * height)
    page.release(left + 0.9 * width, top + 0.9 * height)
    (painted,) = drawn(page, 1)
    assert torch.equal(painted[:, :, : SIZE // 2], glasses[1][:, :, : SIZE // 2])
    assert not torch.equal(painted, glasses[1])
    # The address holds all of it, also the image and the mask.
    other = browser.open(page.run("location.href"))
    other.until(f"{FACES}.length === 1")
    assert other.run(f"{FACES}[0].src") == page.run(f"{FACES}[0].src")
    assert other.run("location.href") == page.run("location.href")
    # Two settings side by side, in a link too.
    page.click("#pin")
    page.fill("[name=seed]", "5")
    drawn(page, 1)
    assert "seed 0" in page.run("document.querySelector('#pinned figcaption').textContent")
    other = browser.open(page.run("location.href"))
    other.until("document.querySelector('#current figcaption').textContent.includes('seed 5')")
    for figure in ("#pinned", "#current"):
        both = [tab.run(f"document.querySelector('{figure} .sheet img').src") for tab in (page, other)]
        assert both[0] == both[1]
    for event in browser.events:
        assert event["method"] not in ("Runtime.exceptionThrown", "Log.entryAdded"), event
        if event["method"] == "Network.requestWillBeSent":
            assert event["params"]["request"]["url"].startswith((server.address, "data:", "blob:"))


def test_what_is_wrong_is_said_beside_the_field(server: Running, browser: Browser) -> None:
    page = browser.open(server.address, width=390, height=800, dark=True)
    page.until(f"{FACES}.length === 1")
    page.fill("[name=seed]", "-1")
    page.click("#draw")
    page.until(ERROR)
    assert said(page) == "seed: found -1, expected a whole number in [0, 4294967296)"
    assert page.run("document.activeElement.name + document.activeElement.ariaInvalid") == "seedtrue"
    page.fill("[name=seed]", "1")
    drawn(page, 1)
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    assert page.run("getComputedStyle(document.body).colorScheme") == "light dark"
    unnamed = (
        "[...document.querySelectorAll('button, input, select, a, canvas')].filter(one => one.checkVisibility() &&"
        " !one.ariaLabel && !one.textContent.trim() && !one.labels?.length && !one.querySelector('img[alt]'))"
        ".map(one => one.outerHTML)"
    )
    assert page.run(unnamed) == []


def test_a_link_that_was_cut_off_is_said_to_be(server: Running, browser: Browser) -> None:
    page = browser.open(f"{server.address}#kind=inpaint&image=iVBORw0KGgo&mask=x")
    page.until(ERROR)
    assert said(page) == "The link holds no whole picture. Copy all of it, and open it again."
    # Another link, in the same tab, with a picture that is kept: it is so after a third one, too.
    for seed in (3, 4):
        page.run(f"location.hash = 'kept.seed={seed}&kept.steps=2&seed=1&steps=2'")
        page.until(f"document.querySelector('#pinned figcaption').textContent.includes('seed {seed}') && {IDLE}")
        assert not page.run("document.querySelector('#pinned').hidden")
    assert page.run("location.href").count("kept.seed=4") == 1
    page.run("location.hash = 'kind=nonsense&seed=1'")
    page.until(f"{ERROR}.includes('nonsense')")
    assert page.run("document.querySelector('[name=mode]:checked').value") == "faces"


def test_two_people_at_once_and_a_server_that_was_started_again(server: Running, browser: Browser) -> None:
    pages = [browser.open(server.address) for _ in range(2)]
    for page in pages:
        page.until(f"{FACES}.length === 1")
        page.fill("[name=count]", "32")
        page.fill("[name=steps]", "40")
        page.run(
            f"window.heard = []; new MutationObserver(() => window.heard.push({STATUS}))"
            ".observe(document.querySelector('#status'), {childList: true})"
        )
    for page in pages:
        page.run("document.querySelector('#draw').click()")
    for page in pages:
        page.until(f"{FACES}.length === 32")
    assert pictures(pages[0])[31].equal(pictures(pages[1])[31])
    assert any("1 before you, about" in line for page in pages for line in page.run("window.heard"))
    page = pages[0]
    page.run("document.querySelector('#draw').click()")
    page.click("#stop")
    page.until(f"{IDLE}")
    assert said(page) == "Stopped."
    page.fill("[name=count]", "1")
    drawn(page, 1)
    server.stop()
    page.click("#draw")
    page.until(ERROR)
    assert said(page).startswith("The server does not answer. Is `unveil play` still running?")
    server.start()
    drawn(page, 1)

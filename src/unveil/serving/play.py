"""The page to play with, and the server behind it."""

import asyncio
import ipaddress
import json
import time
import traceback
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import torch
from fastapi import FastAPI
from fastapi import Request as Call
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unveil.averages import Averages
from unveil.data.given import frame_image
from unveil.diffusion.sampling import NotDrawn
from unveil.errors import UnveilError, line_for_user
from unveil.figures import picture
from unveil.layout import MODELS
from unveil.messages import schema_of, text_of
from unveil.model import WEIGHTS_FILE
from unveil.serving import bounds
from unveil.serving.desk import Desk
from unveil.serving.request import Request, read_request
from unveil.serving.retouch import SUITED, Retouch
from unveil.serving.show import Event, encoded, show
from unveil.serving.studio import Studio

PAGE = ("unveil.serving", "page")  # package and folder of the static files
Result = TypeVar("Result")
WAIT_S = 1.0  # between two words about the queue
STALLED_S = 60.0  # that a client may take to read on: others wait meanwhile
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class Stream(StreamingResponse):
    """Server-sent events, which end where the client goes away."""

    def __init__(self, events: AsyncGenerator[Event, None]) -> None:
        self._events = events
        super().__init__(self._lines(), media_type="text/event-stream")

    async def _lines(self) -> AsyncGenerator[str, None]:
        async for name, facts in self._events:
            yield f"event: {name}\ndata: {json.dumps(facts)}\n\n"

    async def stream_response(self, send: Send) -> None:
        """Send them; what draws is told at once when nobody listens any more, or reads on."""

        async def send_in_time(message: Message) -> None:
            await asyncio.wait_for(send(message), STALLED_S)

        async with aclosing(self._events):
            with suppress(TimeoutError):
                await super().stream_response(send_in_time)


class Server:
    """A studio, its one thread and the queue before it."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.desk = Desk(bounds.MOST_WAITING)
        self._thread = ThreadPoolExecutor(1, "studio")

    def warm_up(self) -> float:
        """Draw one image, so that the first who asks need not wait; the seconds that it took."""
        for _ in range(2):  # the first time PyTorch chooses its kernels
            started = time.perf_counter()
            for _ in show(self.studio, self.studio.usual):
                pass
            seconds = time.perf_counter() - started
        self.desk.measured(self._work(self.studio.usual), seconds)
        return seconds

    def request(self, values: Mapping[str, Any]) -> Request:
        """A request of the page. Raises UnveilError for what cannot be, or costs too much."""
        usual = self.studio.usual
        request = read_request(values, Retouch(**usual.model_dump()) if "kind" in values else usual)
        self.studio.check(request)
        bounds.check_bounds(request, self.studio.shape[-1], (self.studio.usual.guide,))
        return request

    async def events(self, request: Request) -> AsyncGenerator[Event, None]:
        """Wait for the turn, draw, and say what happens."""
        work = self._work(request)
        try:
            with self.desk.ticket(work) as ticket:
                while not ticket.turn.is_set():
                    ahead, seconds = self.desk.ahead(ticket)
                    yield Event("wait", {"ahead": ahead, "seconds": round(seconds, 1)})
                    with suppress(TimeoutError):
                        await asyncio.wait_for(ticket.turn.wait(), WAIT_S)
                started = time.perf_counter()
                async with aclosing(self._drawn(request)) as drawing:
                    async for event in drawing:
                        yield event
                self.desk.measured(work, time.perf_counter() - started)
        except (UnveilError, NotDrawn, OSError) as error:
            yield Event("error", {"error": line_for_user(error) or str(error)})
        except Exception:  # noqa: BLE001 - the one who waits must hear of it
            traceback.print_exc()
            yield Event("error", {"error": "a defect of the server; its terminal says more"})

    async def in_thread(self, function: Callable[[], Result]) -> Result:
        """What a function gives in the studio's thread; other threads leave the studio alone."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    async def _drawn(self, request: Request) -> AsyncGenerator[Event, None]:
        """The events of a drawing, made one at a time in the studio's thread, until nobody wants more."""
        spend = bounds.budget(request, self.studio.shape[-1])
        gone = False

        def watch() -> None:
            if gone:
                raise UnveilError("stopped: nobody waits for it")
            spend()

        def started() -> Generator[Event, None, None]:
            self.studio.watch = watch
            try:
                yield from show(self.studio, request)
            finally:
                self.studio.watch = bool

        events = started()
        try:
            while (event := await self.in_thread(partial(next, events, None))) is not None:
                yield event
        finally:
            gone = True
            self._thread.submit(events.close)  # behind the step that may be at work

    def _work(self, request: Request) -> int:
        return bounds.work(request, self.studio.shape[-1])

    def description(self) -> dict[str, Any]:
        """What the page must know of the model."""
        studio, model = self.studio, self.studio.model
        fields = {key[0]: field for key, field in schema_of(Retouch).items()}
        kinds = {key: field.annotation for key, field in fields.items()}
        averages = Averages.beside(studio.folder / WEIGHTS_FILE)
        snapshots = [f"snapshot:{snapshot.images}" for snapshot in averages.snapshots]
        return {
            "name": name_of(studio.folder.resolve()),
            "model": studio.digest,
            "data": dict(model.data),
            "path": model.diffusion.path,
            "trained": model.training.get("images", 0),
            "image_size": studio.shape[-1],
            "attributes": list(model.network.attributes),
            "usual": Retouch(**studio.usual.model_dump()).model_dump(mode="json"),
            "suited": SUITED,
            "averages": ["ema", *map(str, averages.choices()), *snapshots],
            "texts": {key: text_of(field) for key, field in fields.items()},
            "choices": {key: get_args(kind) for key, kind in kinds.items() if get_origin(kind) is Literal},
            "most_images": bounds.MOST_IMAGES,
            "most_steps": bounds.MOST_STEPS,
        }


class Guard:
    """Lets calls through that are meant for this server, and adds the headers that keep the page to itself.

    Args:
        app: what is guarded.
        names: as of :func:`build_app`.
    """

    def __init__(self, app: ASGIApp, names: frozenset[str]) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a call, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        app, host = self._app, host_of(headers.get("host", ""))
        if not is_allowed(host, self._names):
            app = refused(f"Host: found {host!r}, expected the address that the server printed", 421)
        elif scope["method"] == "POST" and headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            app = refused("found a call of another site, expected one of the page itself", 403)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await app(scope, receive, send_with_headers)


def build_app(server: Server, names: frozenset[str]) -> FastAPI:
    """The page and what it asks for.

    Args:
        server: of the model.
        names: hosts by which the server may be called, beside loopback's; ``*`` = any address in figures too.
    """
    app = FastAPI(title="unveil play", docs_url=None, redoc_url=None, openapi_url=None)

    app.add_middleware(Guard, names=names)

    @app.exception_handler(UnveilError)
    async def wrong(call: Call, error: Exception) -> Response:
        return refused(line_for_user(error) or str(error), 400)

    @app.get("/api/model")
    def model() -> dict[str, Any]:
        return server.description()

    @app.post("/api/draw")
    async def draw(call: Call) -> Response:
        request = await server.in_thread(partial(server.request, await values_of(call)))
        return Stream(server.events(request))

    @app.post("/api/image")
    async def image(call: Call) -> dict[str, str]:
        content = await body_of(call, bounds.MOST_BYTES)
        return await server.in_thread(partial(framed, content, server.studio))

    app.mount("/", StaticFiles(packages=[PAGE], html=True))
    return app


def name_of(folder: Path) -> str:
    """What people call a model: its folder's name, or that of the project around it."""
    return folder.parent.name if folder.name == MODELS.name else folder.name


def framed(content: bytes, studio: Studio) -> dict[str, str]:
    """An uploaded picture as the model takes it, a PNG in base64, and in words what was done to it."""
    try:
        pixels, _, words = frame_image(content, studio.model.data.get("protocol"), studio.shape[-1])
    except ValueError as error:
        raise UnveilError(f"the picture: {error}; choose another") from None
    return {"image": encoded(picture(torch.tensor(pixels)[None], 1, {})), "words": words}


def refused(line: str, status: int) -> JSONResponse:
    """An answer in words."""
    return JSONResponse({"error": line}, status)


def host_of(header: str) -> str:
    """The host of a Host header, without the port."""
    host, _, _ = header.rpartition(":") if not header.endswith("]") and ":" in header else (header, "", "")
    return host.strip("[]").lower()


def is_allowed(host: str, names: frozenset[str]) -> bool:
    """Whether the server may be called so. A foreign page can make a name point here, but no address in figures."""
    if host == "localhost" or host in names:
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or "*" in names


async def body_of(call: Call, most: int) -> bytes:
    """What was sent.

    Raises:
        UnveilError: if it is more than ``most`` bytes.
    """
    content = bytearray()
    try:
        async for chunk in call.stream():
            content += chunk
            if len(content) > most:
                raise UnveilError(f"found more than {most / 1e6:g} MB, expected fewer; make the image smaller")
    except ClientDisconnect:
        raise UnveilError("found half of what was sent, expected all of it") from None
    return bytes(content)


async def values_of(call: Call) -> dict[str, Any]:
    """The JSON that was sent. Raises UnveilError if it is none."""
    kind = call.headers.get("content-type", "").partition(";")[0].strip()
    if kind != "application/json":  # which no foreign page can send
        raise UnveilError(f"Content-Type: found {kind or 'none'}, expected application/json")
    try:
        values = json.loads(await body_of(call, bounds.MOST_BYTES))
    except (ValueError, RecursionError):
        raise UnveilError("found no JSON, expected an object of settings") from None
    if not isinstance(values, dict):
        raise UnveilError("found no object, expected one of settings")
    if not all(key.isprintable() for key in values):
        raise UnveilError("found a key that is no text, expected those of settings")
    return values

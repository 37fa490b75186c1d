"""The server behind the page: what it answers, what it refuses, who waits, and what a client that goes away stops."""

import asyncio
import json
import time
from base64 import b64decode, b64encode
from collections.abc import AsyncGenerator, Iterator
from contextlib import AbstractContextManager, aclosing
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from tests.serving.models import SIZE, save_conditional

from unveil.diffusion.samplers import Step
from unveil.errors import UnveilError
from unveil.serving import bounds, play
from unveil.serving.desk import Busy, Desk
from unveil.serving.play import HEADERS, Server, Stream, build_app, host_of, is_allowed
from unveil.serving.request import Request
from unveil.serving.show import Event
from unveil.serving.studio import Studio

FACE = np.full((SIZE, SIZE, 3), 90, np.uint8)
FACE[4:9, 3:12] = (200, 120, 60)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Server:
    folder = save_conditional(tmp_path_factory.mktemp("project") / "models")
    server = Server(Studio.load(folder, "cpu"))
    server.warm_up()
    return server


@pytest.fixture
def client(server: Server) -> Iterator[TestClient]:
    with TestClient(build_app(server, frozenset({"faces.example"})), base_url="http://127.0.0.1:8000") as client:
        yield client


def png(pixels: np.ndarray, mode: str = "PNG") -> str:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, mode)
    return b64encode(stream.getvalue()).decode()


def opened(content: str) -> tuple[torch.Tensor, dict[str, Any]]:
    with Image.open(BytesIO(b64decode(content))) as image:
        text = image.text["unveil"]  # type: ignore[attr-defined]
        return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1), json.loads(text)


def ask(client: TestClient, **values: Any) -> list[tuple[str, dict[str, Any]]]:
    """The events of an answer."""
    answer = client.post("/api/draw", json={"steps": 3, **values})
    assert answer.status_code == 200, answer.text
    blocks = [block.split("\n") for block in answer.text.strip().split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


def test_a_face_emerges_and_is_the_one_of_the_command_line(client: TestClient, server: Server) -> None:
    asked = {"seed": 7, "first": 2, "count": 3, "attributes": ["Smiling", "-Bald"], "guidance": 2}
    *steps, (name, done) = ask(client, **asked)
    assert name == "done"
    assert {name for name, _ in steps} == {"step"}
    assert [step["step"] for _, step in steps[:2]] == [0, 1]
    with Image.open(BytesIO(b64decode(steps[0][1]["image"]))) as glimpse:
        assert glimpse.format == "WEBP"
    images = server.studio.images(server.studio.request({"steps": 3, **asked}))
    for number, (content, expected, label) in enumerate(zip(done["images"], images, done["labels"], strict=True)):
        pixels, facts = opened(content)
        assert torch.equal(pixels, expected)
        assert (facts["first"], facts["count"], facts["attributes"]) == (2 + number, 1, ["Smiling", "-Bald"])
        assert label == f"Image {2 + number} of seed 7: Smiling, not Bald, guidance 2"
    again = ask(client, **{key: done["facts"][key] for key in Request.model_fields if key in done["facts"]})
    assert again[-1][1]["picture"] == done["picture"]
    assert opened(done["picture"])[1] == done["facts"]


def test_switches_and_scales_are_tables(client: TestClient) -> None:
    done = ask(client, switch=["Bald"], count=2)[-1][1]
    assert (done["columns"], len(done["images"])) == (4, 4)
    assert done["labels"][:2] == ["Image 0 of seed 0: not Bald", "Image 0 of seed 0: Bald"]
    done = ask(client, scales=[0, 2], attributes=["Bald"])[-1][1]
    assert done["labels"] == ["Image 0 of seed 0: Bald, guidance 0", "Image 0 of seed 0: Bald, guidance 2"]


@pytest.mark.parametrize("kind", ["edit", "inpaint", "vary", "interpolate"])
def test_an_image_is_retouched(client: TestClient, kind: str) -> None:
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[:, 8:] = 255
    given = {"image": png(FACE), "other": png(FACE[::-1].copy()), "mask": png(mask)}
    asked = {"kind": kind, **given, "attributes": ["Bald"], "resamplings": 2, "count": 2}
    *_, (name, done) = ask(client, **asked)
    assert name == "done", done
    images = [opened(content) for content in done["images"]]
    assert len(images) == 2
    assert all(facts["kind"] == kind and len(facts["image"]) == 64 for _, facts in images)
    if kind == "interpolate":  # each is of the same two ends, and says which it is
        assert [(facts["first"], facts["place"]) for _, facts in images] == [(0, 0), (0, 1)]
    if kind == "inpaint":
        for pixels, _ in images:
            assert torch.equal(pixels[:, :, :8], torch.from_numpy(FACE).permute(2, 0, 1)[:, :, :8])
    assert ask(client, **asked)[-1][1]["picture"] == done["picture"]


def test_an_uploaded_picture_is_framed_for_the_model(client: TestClient) -> None:
    stream = BytesIO()
    Image.fromarray(np.full((40, 60, 3), 120, np.uint8)).save(stream, "JPEG")
    answer = client.post("/api/image", content=stream.getvalue(), headers={"Content-Type": "image/jpeg"}).json()
    with Image.open(BytesIO(b64decode(answer["image"]))) as image:
        assert image.size == (SIZE, SIZE)
    assert "60 x 40 pixels" in answer["words"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"steps": "many"}, 'steps: found "many", expected a whole number'),
        ({"attributes": ["Smily"]}, "attributes: found Smily, did you mean Smiling?"),
        ({"count": 65}, "count: found 65 images, expected at most 64"),
        ({"steps": 1001}, "steps: found 1,001, expected at most 1,000"),
        ({"count": 64, "steps": 1000, "kind": "inpaint", "resamplings": 50}, "million pixels to evaluate"),
        ({"switch": ["Bald"] * 100_000}, "expected a list of text, at most 64"),
        ({"\ud800": 1}, "found a key that is no text"),
        ({"guide": "/etc", "guidance": 2}, "guide: found another folder than the server's"),
        ({"kind": "paint"}, 'kind: found "paint", expected edit | inpaint | vary | interpolate'),
    ],
)
def test_what_is_wrong_is_said_in_words(client: TestClient, values: dict[str, Any], words: str) -> None:
    answer = client.post("/api/draw", content=json.dumps(values), headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert words in answer.json()["error"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"kind": "edit"}, "image: found none, expected a picture"),
        ({"kind": "edit", "image": "%%"}, "image: found no base64"),
        ({"kind": "vary", "image": b64encode(b"text").decode()}, "image: not an image"),
        (
            {"kind": "inpaint", "image": png(FACE), "mask": png(np.zeros((SIZE, SIZE), np.uint8))},
            "mask: found no white",
        ),
        ({"kind": "edit", "image": png(FACE), "sampler": "ddpm"}, "sampler: found ddpm, which draws noise"),
        ({"weights": "half-life:77"}, "half-life"),
    ],
)
def test_what_turns_out_to_be_wrong_is_an_event(client: TestClient, values: dict[str, Any], words: str) -> None:
    *_, (name, facts) = ask(client, **values)
    assert name == "error"
    assert words in facts["error"]


def test_what_is_not_sent_by_the_page_is_refused(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    for content, kind in ((b"{", "application/json"), (b"[]", "application/json"), (b"{}", "text/plain"), (b"{}", "")):
        answer = client.post("/api/draw", content=content, headers={"Content-Type": kind})
        assert (answer.status_code, "expected" in answer.json()["error"]) == (400, True)
    assert client.post("/api/image", content=b"GIF").status_code == 400
    monkeypatch.setattr(bounds, "MOST_BYTES", 1000)
    assert "found more than 0.001 MB" in client.post("/api/image", content=b"x" * 1001).json()["error"]
    assert client.get("/api/nothing").status_code == 404
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "[::2]:80", "10.0.0.1"):
        assert client.get("/api/model", headers={"Host": host}).status_code == 421
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000", "FACES.example:1"):
        assert client.get("/api/model", headers={"Host": host}).status_code == 200
    foreign = {"Sec-Fetch-Site": "cross-site"}
    assert client.post("/api/draw", json={}, headers=foreign).status_code == 403
    assert client.get("/", headers=foreign).status_code == 200  # a link from elsewhere
    assert is_allowed(host_of("10.0.0.1:80"), frozenset({"*"}))
    assert not is_allowed(host_of("evil.example"), frozenset({"*"}))


def test_the_page_asks_nobody_else(client: TestClient) -> None:
    for route in ("/", "/style.css", "/script.js"):
        answer = client.get(route)
        assert answer.status_code == 200
        assert set(HEADERS.items()) <= set({name.title(): value for name, value in answer.headers.items()}.items())
        assert "//" not in answer.text.replace("http://www.w3.org", "").replace("// ", "")


def test_the_description_has_what_the_model_knows(client: TestClient, server: Server) -> None:
    model = client.get("/api/model").json()
    assert model["attributes"] == ["Smiling", "Bald"]
    assert model["usual"]["steps"] == server.studio.usual.steps
    assert (model["image_size"], model["averages"]) == (SIZE, ["ema"])
    assert model["texts"]["strength"]


def test_those_who_wait_are_served_in_order_and_told_how_long(server: Server) -> None:
    async def visit(seed: int, heard: list[tuple[int, str]]) -> list[dict[str, Any]]:
        waits = []
        async for name, facts in server.events(server.request({"seed": seed, "steps": 5, "count": 4})):
            heard.append((seed, name))
            waits += [facts] if name == "wait" else []
        return waits

    async def crowd() -> tuple[list[list[dict[str, Any]]], list[tuple[int, str]]]:
        heard: list[tuple[int, str]] = []
        waits = await asyncio.gather(*(visit(seed, heard) for seed in range(3)))
        return list(waits), heard

    waits, heard = asyncio.run(crowd())
    assert [place[0]["ahead"] if place else 0 for place in waits] == [0, 1, 2]
    assert 0 <= waits[1][0]["seconds"] <= waits[2][0]["seconds"]
    assert [seed for seed, name in heard if name == "done"] == [0, 1, 2]


def test_more_than_can_wait_are_told_so() -> None:
    async def crowd() -> None:
        desk = Desk(2, seconds=3.0)
        with desk.ticket(1.0) as first:
            with desk.ticket(2.0) as second:
                assert first.turn.is_set() and not second.turn.is_set()
                assert desk.ahead(second) == (1, 3.0)
                with pytest.raises(Busy, match="2 requests are waiting already, for about 9 s"), desk.ticket(1.0):
                    pass
            with desk.ticket(1.0) as third:
                assert desk.ahead(third) == (1, 3.0)
        assert desk.ahead(None) == (0, 0)

    asyncio.run(crowd())


def test_a_client_that_goes_away_stops_its_drawing(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated = 0
    how = Studio.how

    def slowly(self: Studio, request: Request) -> dict[str, Any]:
        found = how(self, request)

        def context() -> AbstractContextManager[object]:
            nonlocal evaluated
            evaluated += 1
            time.sleep(0.02)
            entered: AbstractContextManager[object] = found["context"]()
            return entered

        return found | {"context": context}

    async def leave() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Studio, "how", slowly)
            endless = {"sampler": "rk45", "rtol": 1e-5, "atol": 1e-5}  # in a single step
            async with aclosing(server.events(server.request(endless))) as events:
                async for _ in events:
                    break
        assert server.desk.ahead(None) == (0, 0)
        last = [event async for event in server.events(server.studio.usual)][-1]
        assert last.name == "done"

    asyncio.run(leave())
    assert evaluated < 10


def test_a_client_that_reads_no_further_loses_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(play, "STALLED_S", 0.05)
    ended = []

    async def drawing() -> AsyncGenerator[Event, None]:
        try:
            yield Event("step", {})
        finally:
            ended.append(True)

    async def stuck(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    asyncio.run(Stream(drawing()).stream_response(stuck))
    assert ended


def test_what_costs_more_than_foreseen_is_stopped(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "evaluations", lambda request, size: 5)
    assert ask(client, sampler="euler", steps=5)[-1][0] == "done"
    name, facts = ask(client, sampler="euler", steps=6)[-1]
    assert name == "error" and facts["error"].startswith("stopped: it takes more than may be asked for")


def test_a_defect_is_said_too(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Studio, request: Request) -> Iterator[Step]:
        raise UnveilError("one line") if request.seed else KeyError("a defect")

    monkeypatch.setattr(Studio, "steps", broken)

    async def hear(seed: int) -> str:
        usual = server.studio.usual.replace(seed=seed)
        return "".join([event.facts["error"] async for event in server.events(usual)])

    assert asyncio.run(hear(1)) == "one line"
    assert asyncio.run(hear(0)) == "a defect of the server; its terminal says more"

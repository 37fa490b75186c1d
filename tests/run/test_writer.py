"""unveil.run.writer: how long a stage waits for a store, and what becomes of what the store did not take."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from unveil.run import writer
from unveil.run.calls import Call, Rows, TextFile
from unveil.run.writer import Writer


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"LATE": 0.1, "WAIT": 0.3, "TOTAL": 3.0, "END": 1.0, "RETRY": 0.2}.items():
        monkeypatch.setattr(writer, f"{name}_SECONDS", seconds)


@pytest.fixture
def silence() -> Iterator[threading.Event]:
    """Until it is set, a call that waits for it does not return."""
    event = threading.Event()
    yield event
    event.set()


class Seconds:
    """How long a block took."""

    def __enter__(self) -> "Seconds":
        self.started = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.passed = time.monotonic() - self.started


def again(call: Call, error: Exception) -> bool:
    return False


class Store:
    """A list that refuses while it is away; ``before`` is done first."""

    def __init__(self, before: Callable[[], object] = lambda: None) -> None:
        self.rows: list[Any] = []
        self.before = before
        self.is_away = False
        self.calls = 0

    def take(self, rows: list[Any]) -> None:
        self.calls += 1
        self.before()
        if self.is_away:
            raise ConnectionError("away")
        self.rows += rows


class Values(Rows):
    """Rows that go into a ``Store``."""

    rows: list[Any]

    def make(self, client: Any) -> None:
        client.take(self.rows)


class Named(TextFile):
    """A name that goes into a store."""

    def make(self, client: Any) -> None:
        client.take([self.name])


def values(*rows: int) -> Values:
    return Values(run_id="r", kind="metric values", rows=list(rows))


def file(name: str) -> Named:
    return Named(run_id="r", name=name, text="")


def writer_of(store: Store, is_final: Callable[[Call, Exception], bool] = again) -> Writer:
    made = Writer(is_final)
    made.client = store
    return made


def test_what_is_written_is_there_at_once() -> None:
    store = Store()
    made = writer_of(store)
    made.write(values(1))
    assert store.rows == [1]
    assert made.close() == ""


def test_a_store_that_is_silent_is_waited_for_once_and_what_it_misses_is_named(silence: threading.Event) -> None:
    made = writer_of(Store(silence.wait))
    with Seconds() as first:
        made.write(values(1))
    with Seconds() as others:
        for number in range(100):
            made.write(values(number))
        made.write(file("a.png"))
        made.write(file("b.png"))
    with Seconds() as end:
        assert made.close() == "101 metric values, text a.png, b.png"
    assert first.passed < 0.6 and others.passed < 0.2 and end.passed < 0.8


def test_what_a_store_missed_is_written_in_order_when_it_is_back() -> None:
    store = Store()
    made = writer_of(store)
    store.is_away = True
    with Seconds() as away:
        for number in range(50):
            made.write(values(number))
    assert away.passed < 0.2 and store.calls <= 2  # not at every point
    store.is_away = False
    time.sleep(0.5)
    made.write(values(50))
    assert store.rows == list(range(51))
    assert made.close() == ""


def test_the_end_tries_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "RETRY_SECONDS", 100.0)
    store = Store()
    made = writer_of(store)
    store.is_away = True
    made.write(values(1))
    store.is_away = False
    assert made.close() == ""
    assert store.rows == [1]


def test_a_kind_that_fails_does_not_hold_up_another() -> None:
    class Full(Named):
        def make(self, client: Any) -> None:
            raise OSError(28, "No space left on device")

    store = Store()
    made = writer_of(store)
    made.write(Full(run_id="r", name="a.png", text=""))
    for number in range(3):
        made.write(values(number))
    assert made.close() == "text a.png"
    assert store.rows == [0, 1, 2]


def test_what_is_refused_for_good_is_not_tried_again() -> None:
    told: list[str] = []

    def refused(call: Call, error: Exception) -> bool:
        told.append(f"{call.kind}: {error}")
        return True

    store = Store()
    made = writer_of(store, refused)
    store.is_away = True
    made.write(values(1))
    assert made.close() == ""
    assert store.calls == 1 and told == ["metric values: away"]


def test_all_waiting_together_is_bounded() -> None:
    made = writer_of(Store(lambda: time.sleep(0.25)))
    with Seconds() as all_together:
        for _ in range(15):
            made.write(values(1))
    assert all_together.passed < 2.6  # of 3.75; one second is kept for the end


def test_a_file_on_its_way_has_the_rest_of_the_time() -> None:
    made = writer_of(Store(lambda: time.sleep(0.9)))
    made.write(file("large"))
    assert made.close() == ""


def test_who_is_in_a_hurry_does_not_wait(silence: threading.Event) -> None:
    made = writer_of(Store(silence.wait))
    made.hurry()
    with Seconds() as passed:
        made.write(values(1))
    assert passed.passed < 0.1


def test_a_question_is_answered_raises_or_comes_too_late(silence: threading.Event) -> None:
    made = Writer(again)
    assert made.ask(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        made.ask(lambda: 1 // 0)
    with Seconds() as passed:
        assert made.ask(silence.wait, 0.3) is None
    assert passed.passed < 0.6
    assert made.close() == ""

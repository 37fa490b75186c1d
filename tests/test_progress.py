"""Lines of progress: under a clock that the test moves, on a terminal and in a pipe."""

import os
import pty
import subprocess
import sys
import textwrap

import pytest

from unveil.progress import ProgressLine, duration, images, megabytes


class Clock:
    """Seconds that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("unveil.progress.time.monotonic", lambda: clock.now)
    return clock


def test_the_time_left_follows_from_the_speed(clock: Clock) -> None:
    said = list[str]()
    progress = ProgressLine("x.zip", 1000, said.append, describe=str, done=400)
    clock.now += 20
    progress.add(100)  # 5 a second since the start, 500 left; the 400 before do not count
    assert said == ["x.zip: 500 of 1000, 5/s, about 1 min 40 s left"]


def test_lines_come_no_closer_than_ten_seconds_and_not_at_the_end(clock: Clock) -> None:
    said = list[str]()
    progress = ProgressLine("x", 100, said.append, describe=str)
    for _ in range(100):
        clock.now += 1
        progress.add(1)
    assert len(said) == 9
    assert progress.done == 100


def test_what_is_quick_is_silent(clock: Clock) -> None:
    said: list[str] = []
    progress = ProgressLine("x", 3, said.append, describe=str)
    for _ in range(3):
        progress.add(1)
    assert said == []


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.1, "1 s"), (59.4, "59 s"), (60, "1 min 00 s"), (3599, "59 min 59 s"), (7500, "2 h 05 min")],
)
def test_time_spans_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_amounts_in_words() -> None:
    assert megabytes(1_443_490_838) == "1,443 MB"
    assert megabytes(2_836_386) == "2.8 MB"
    assert images(202_599) == "202,599 images"


CODE = """
    import sys
    from unveil.printing import unheard
    from unveil.progress import Passing, say
    with unheard():
        for number in range(3):
            say(Passing(f"step {number} " + "x" * 200))
        print("warning", file=sys.stderr)
        say(Passing("step 3"))
        say("written")
        say(Passing("step 4"))
"""


def output_of_code(terminal: bool, **environment: str) -> str:
    theirs, ours = pty.openpty() if terminal else os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CODE)],
        stdout=ours,
        stderr=ours,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "30", "PYTHONUNBUFFERED": "1"} | environment,
    )
    os.close(ours)
    found = b""
    try:
        while part := os.read(theirs, 4096):
            found += part
    except OSError:  # how a terminal says that its last writer is gone
        pass
    os.close(theirs)
    assert process.wait(60) == 0
    return found.decode().replace("\r\n", "\n")


def test_a_terminal_has_one_line_of_progress_which_nothing_tears() -> None:
    shown = output_of_code(terminal=True)
    screen = [line.rpartition("\r")[2].removeprefix("\x1b[K").removesuffix("\x1b[K") for line in shown.split("\n")]
    assert screen == ["warning", "written", "step 4", ""]
    assert f"\rstep 2 {'x' * 22}\x1b[K" in shown  # no longer than the terminal is wide


@pytest.mark.parametrize("place", ["pipe", "terminal that cannot"])
def test_elsewhere_every_line_is_plain(place: str) -> None:
    shown = output_of_code(terminal=place != "pipe", TERM="dumb")
    assert shown.isascii() and "\r" not in shown and "\x1b" not in shown
    assert [line[:7] for line in shown.split("\n")] == [
        *("step 0 ", "step 1 ", "step 2 ", "warning"),
        *("step 3", "written", "step 4", ""),
    ]

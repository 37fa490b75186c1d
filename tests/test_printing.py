"""unveil.printing: who does not listen any more does not end the work."""

import errno
import io
import os
import pty
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from unveil.printing import Unheard

CODE = """
    import sys
    from pathlib import Path
    from unveil.printing import unheard
    with unheard():
        sys.stdin.readline()  # until nobody listens any more
        for line in range(20_000):
            print("line", line)
            print("line", line, file=sys.stderr, flush=True)
        Path(sys.argv[1]).touch()
"""


@pytest.mark.parametrize("listener", ["pipe", "terminal"])
def test_work_goes_on_where_nobody_listens(tmp_path: Path, listener: str) -> None:
    theirs, ours = pty.openpty() if listener == "terminal" else os.pipe()
    command = [sys.executable, "-c", textwrap.dedent(CODE), str(tmp_path / "done")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=ours, stderr=ours)
    os.close(ours)
    os.close(theirs)
    process.communicate(b"\n", timeout=60)
    assert process.returncode == 0
    assert (tmp_path / "done").exists()


def test_streams_that_were_closed_before_the_start_are_no_reason_to_stop(tmp_path: Path) -> None:
    code = "from pathlib import Path; from unveil.printing import unheard; import sys\n" + (
        "with unheard(): print(1); print(2, file=sys.stderr)\nPath('done').touch()"
    )
    command = ["sh", "-c", '"$0" -c "$1" >&- 2>&- <&-', sys.executable, code]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert (tmp_path / "done").exists()


def test_of_a_log_on_a_full_disk_only_that_text_is_lost(tmp_path: Path) -> None:
    class Full(io.StringIO):
        full = True

        def write(self, text: str) -> int:
            if self.full:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(text)

    log = Full()
    stream = Unheard(log)
    stream.write("lost")
    log.full = False
    stream.write("kept")
    assert log.getvalue() == "kept"


def test_a_name_that_the_terminal_cannot_show_is_escaped() -> None:
    code = r"from unveil.printing import unheard" "\n" r"with unheard(): print('Gr\xf6\xdfe \udcff')"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, check=True
    )
    assert done.stdout == rb"Gr\xf6\xdfe \udcff" + b"\n"

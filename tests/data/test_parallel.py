"""map_processes: order, errors, and workers that do not outlive their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mpq.data.parallel import map_processes
from mpq.io import BadInput

ROOT = Path(__file__).resolve().parents[2]


def slow_square(number: int) -> tuple[int, int]:
    """The earlier, the slower: completion order is not the order of the items."""
    time.sleep(0.05 * (5 - number))
    return number * number, os.getpid()


def refuse_three(number: int) -> int:
    if number >= 3:
        raise BadInput(f"item {number}")
    return number


def test_results_keep_the_order_and_come_from_several_processes() -> None:
    results = list(map_processes(slow_square, range(5), 2))
    assert [square for square, _ in results] == [0, 1, 4, 9, 16]
    assert len({pid for _, pid in results} - {os.getpid()}) == 2
    assert {pid for _, pid in map_processes(slow_square, range(3, 5), 1)} == {os.getpid()}
    assert list(map_processes(refuse_three, [], 4)) == []


@pytest.mark.parametrize("nj", [1, 3])
def test_first_error_in_order_is_raised(nj: int) -> None:
    results = []
    with pytest.raises(BadInput, match="item 3"):
        for result in map_processes(refuse_three, range(40), nj):
            results.append(result)
    assert results == [0, 1, 2]


def test_no_jobs_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"nj \(0\)"):
        map_processes(refuse_three, [1], 0)


def test_workers_end_when_the_parent_is_killed() -> None:
    program = (
        "import os, time\n"
        "from mpq.data.parallel import map_processes\n"
        # one write a line: `print` may take two, and the two workers share the pipe
        "def work(n):\n    os.write(1, b'%d\\n' % os.getpid()); time.sleep(60)\n"
        "list(map_processes(work, range(4), 2))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    workers = [int(parent.stdout.readline()) for _ in range(2)]
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = [pid for pid in workers if alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended but was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False

"""The kernel limits a task's memory, where a control group is handed over. On this machine's own control groups."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wsync_engine.worker.task_groups import TaskGroups
from wsync_sdk.errors import ConfigError

MIB = 1024 * 1024
ROOT = Path("/sys/fs/cgroup")
GREEDY = "x = b'x' * (400 * 1024 * 1024)"


@pytest.fixture
def handed_over() -> Iterator[Path]:
    """A control group with memory, without processes of its own."""
    paths = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    if "memory" in paths:
        folder = ROOT / "memory" / paths["memory"].lstrip("/") / f"wsync-test-{os.getpid()}"
    else:
        folder = ROOT / f"wsync-test-{os.getpid()}"
    try:
        folder.mkdir()
        TaskGroups(folder, limit_bytes=100 * MIB)
    except (OSError, ConfigError) as exc:
        pytest.skip(f"no control group can be made here: {exc}")
    yield folder
    for _ in range(100):
        for group in [*folder.iterdir(), folder]:
            if group.is_dir():
                try:
                    group.rmdir()
                except OSError:
                    time.sleep(0.05)
        if not folder.exists():
            return


def test_the_kernel_ends_a_run_that_takes_more_than_it_may(handed_over: Path, world: Any) -> None:
    world.add_sync(failure="memory", max_attempts=1)
    run_id = world.add_run()
    world.start_worker(task_cgroup=str(handed_over), group_bytes=200 * MIB)
    world.shut("plan")

    row = world.until_state(run_id, "failed", "succeeded")

    assert (row["state"], row["error_class"]) == ("failed", "memory_limit"), world.logs()


def test_a_childs_group_goes_with_it(handed_over: Path, world: Any) -> None:
    world.add_sync()
    worker = world.start_worker(task_cgroup=str(handed_over), group_bytes=400 * MIB, runs_per_child=1)
    for _ in range(3):
        world.until_state(world.add_run(), "succeeded", "failed")

    groups = [group.name for group in handed_over.iterdir() if group.is_dir()]
    worker.terminate()
    worker.wait(30)

    assert 1 <= len(groups) <= 2  # of the child, and of the one before, which may still be ending
    assert [group.name for group in handed_over.iterdir() if group.is_dir()] == []


def test_groups_of_workers_that_were_killed_are_removed_and_those_of_living_ones_stay(handed_over: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as living, subprocess.Popen(["true"]) as gone:
        gone.wait()
        TaskGroups(handed_over, limit_bytes=100 * MIB).add(living.pid)
        of_gone = [handed_over / f"wsync-task-{name}" for name in (f"{gone.pid}-1", str(gone.pid), "x")]
        # The other worker's child has ended for want of memory, and it has not looked yet.
        of_living = [handed_over / f"wsync-task-{living.pid}-1", handed_over / f"wsync-task-{os.getpid()}-{living.pid}"]
        for group in (*of_gone, of_living[0]):
            group.mkdir()

        TaskGroups(handed_over, limit_bytes=100 * MIB)

        assert {group for group in handed_over.iterdir() if group.is_dir()} == set(of_living)
        of_living[0].rmdir()
        living.kill()


def test_only_who_took_too_much_is_said_to_have(handed_over: Path) -> None:
    groups = TaskGroups(handed_over, limit_bytes=100 * MIB)
    for program, is_greedy in ((GREEDY, True), ("pass", False)):
        with subprocess.Popen([sys.executable, "-c", f"input(); {program}"], stdin=subprocess.PIPE) as process:
            groups.add(process.pid)
            process.communicate(b"\n")
        assert groups.is_exceeded(process.pid) == is_greedy
        groups.remove(process.pid)


@pytest.mark.parametrize("controllers", [None, "cpu io\n"])
def test_a_folder_that_is_no_control_group_with_memory_is_refused(tmp_path: Path, controllers: str | None) -> None:
    if controllers is not None:
        (tmp_path / "cgroup.controllers").write_text(controllers)

    with pytest.raises(ConfigError, match=r"can't take tasks") as refused:
        TaskGroups(tmp_path, limit_bytes=100 * MIB)

    assert "WSYNC_TASK_CGROUP" in refused.value.next_step

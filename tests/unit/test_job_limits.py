"""Memory and cores available to a job, according to a faked /proc and /sys."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch

import mtkit.device
from mtkit.job_limits import available_bytes, cpu_quota, usable_cores

GB = 2**30
V2 = "31 23 0:28 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
)


def write(root: Path, files: dict[str, str | int]) -> Path:
    """Write a tree of files."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine with 64 GB free, where this process has 1 GB resident and 2 GB of addresses."""
    return write(
        tmp_path,
        {
            "proc/meminfo": f"MemTotal: {70 * 2**20} kB\nMemAvailable:   {64 * 2**20} kB\nHugePages_Total: 0\n",
            "proc/self/status": f"Name:\tpython\nVmSize:\t{2 * 2**20} kB\nVmData:\t{2**20} kB\nVmRSS:\t{2**20} kB\n",
        },
    )


def test_a_machine_without_limits(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert available_bytes(1, root, {}) == 64 * GB
    assert available_bytes(4, root, {}) == 16 * GB
    assert available_bytes(1, tmp_path_factory.mktemp("mac"), {}) == math.inf


@pytest.mark.parametrize(
    ("own", "parent", "expected"),
    [
        ({"memory.max": 8 * GB, "memory.current": 3 * GB}, {"memory.max": "max"}, 5),
        ({"memory.max": "max", "memory.current": GB}, {"memory.max": 8 * GB, "memory.current": 6 * GB}, 2),
        ({"memory.max": 8 * GB, "memory.high": 4 * GB, "memory.current": GB}, {}, 3),
        (
            {
                "memory.max": 8 * GB,
                "memory.current": 7 * GB,
                "memory.stat": f"anon 1\ninactive_file {4 * GB}\n",
            },
            {},
            5,
        ),
        ({"memory.max": 4 * GB, "memory.current": 5 * GB}, {}, 0),
    ],
    ids=["own", "around it", "high", "pages of files", "over it"],
)
def test_cgroup_v2(
    root: Path, own: dict[str, str | int], parent: dict[str, str | int], expected: int
) -> None:
    write(root, {"proc/self/mountinfo": V2, "proc/self/cgroup": "0::/slurm/job_1/step_0\n"})
    write(root / "sys/fs/cgroup/slurm/job_1/step_0", own)
    write(root / "sys/fs/cgroup/slurm", parent)
    assert available_bytes(1, root, {}) == expected * GB


@pytest.mark.parametrize(
    ("own", "parent", "expected"),
    [
        ({"memory.limit_in_bytes": 8 * GB, "memory.usage_in_bytes": GB}, {}, 7),
        (
            {"memory.limit_in_bytes": 2**63 - 4096, "memory.usage_in_bytes": GB},
            {"memory.limit_in_bytes": 6 * GB, "memory.usage_in_bytes": 2 * GB},
            4,
        ),
        (
            {
                "memory.limit_in_bytes": 2**63 - 4096,
                "memory.usage_in_bytes": 2 * GB,
                "memory.stat": f"inactive_file 0\nhierarchical_memory_limit {5 * GB}\ntotal_inactive_file {GB}\n",
            },
            {},
            4,
        ),
    ],
    ids=["own", "around it", "hierarchical"],
)
def test_cgroup_v1(
    root: Path, own: dict[str, str | int], parent: dict[str, str | int], expected: int
) -> None:
    told = "5:cpu,cpuacct:/\n4:memory:/slurm/uid_0/job_1\n0::/\n"
    write(root, {"proc/self/mountinfo": V1, "proc/self/cgroup": told})
    write(root / "sys/fs/cgroup/memory/slurm/uid_0/job_1", own)
    write(root / "sys/fs/cgroup/memory/slurm", parent)
    assert available_bytes(1, root, {}) == expected * GB


@pytest.mark.parametrize("group", ["/docker/abc", "/../elsewhere", "/"])
def test_a_container_sees_its_cgroup_at_the_root(root: Path, group: str) -> None:
    within = "/docker/abc" if group == "/docker/abc" else "/"
    mount = V2.replace("0:28 /", f"0:28 {within}")
    write(root, {"proc/self/mountinfo": mount, "proc/self/cgroup": f"0::{group}\n"})
    write(root / "sys/fs/cgroup", {"memory.max": 4 * GB, "memory.current": GB})
    assert available_bytes(2, root, {}) == 1.5 * GB


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SLURM_MEM_PER_NODE": "8192"}, 8 - 2),
        ({"SLURM_MEM_PER_CPU": "2048", "SLURM_CPUS_ON_NODE": "8"}, 16 - 2),
        ({"SLURM_MEM_PER_CPU": "2048"}, 64),
        ({"SLURM_MEM_PER_NODE": "0", "SLURM_CPUS_ON_NODE": "8"}, 64),
    ],
)
def test_slurm(root: Path, variables: dict[str, str], expected: int) -> None:
    assert available_bytes(2, root, variables) == expected * GB / 2  # two processes have 1 GB each


def test_process_limits_are_not_shared(root: Path) -> None:
    limits = (
        "Limit                     Soft Limit           Hard Limit           Units     \n"
        "Max cpu time              unlimited            unlimited            seconds   \n"
        f"Max data size             {6 * GB}           unlimited            bytes     \n"
        f"Max address space         {9 * GB}           unlimited            bytes     \n"
    )
    write(root, {"proc/self/limits": limits})
    assert available_bytes(2, root, {}) == 5 * GB


# --- cores --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "parent", "quota", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, {"cpu.max": "max 100000\n"}, 1.5, 2),
        ({"cpu.max": "max 100000\n"}, {"cpu.max": "300000 100000\n"}, 3, 3),
        ({"cpu.max": "10000 100000\n"}, {}, 0.1, 1),
        ({"cpu.max": "max 100000\n"}, {}, math.inf, 8),
        ({"cpu.cfs_quota_us": 400_000, "cpu.cfs_period_us": 200_000}, {}, 2, 2),
        ({"cpu.cfs_quota_us": -1, "cpu.cfs_period_us": 100_000}, {}, math.inf, 8),
    ],
)
def test_a_quota_limits_the_cores(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    own: dict[str, str | int],
    parent: dict[str, str | int],
    quota: float,
    cores: int,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    told = "5:cpu,cpuacct:/docker/job\n4:memory:/\n0::/docker/job\n"
    is_v2 = "cpu.max" in own
    write(root, {"proc/self/mountinfo": V2 if is_v2 else V1, "proc/self/cgroup": told})
    folder = root / "sys/fs/cgroup" / ("" if is_v2 else "cpu") / "docker"
    write(folder / "job", own)
    write(folder, parent)
    assert (cpu_quota(root), usable_cores(root)) == (quota, cores)


@pytest.mark.parametrize(("own", "expected"), [(None, 2), ("4", 4)])
def test_threads_follow_a_quota_unless_their_number_is_set(
    monkeypatch: pytest.MonkeyPatch, own: str | None, expected: int
) -> None:
    threads = [4]
    monkeypatch.setattr(mtkit.device, "cpu_quota", lambda: 1.5)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if own is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", own)
    mtkit.device.limit_threads()
    assert threads[-1] == expected

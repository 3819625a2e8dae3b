"""Memory and CPU cores that a job may use: the smallest of what its machine has and all limits on the job.

A job often gets less memory than its machine has: by control groups (cgroup v1 and v2, its own and all ancestors), by
its SLURM request, or by process limits (setrlimit). Cores are limited by CPU affinity, and by the quotas of control
groups: those of a container started with `docker run --cpus=2`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path, PurePosixPath

_LIMIT_FILES = ("memory.max", "memory.high", "memory.limit_in_bytes")
"""Limits of a control group; the first two are of cgroup v2, the last of v1."""
_USAGE_FILES = ("memory.current", "memory.usage_in_bytes")
_CPU_FILES = ("cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us")
"""Quota and period of a control group in microseconds: in one file of cgroup v2, in two of v1."""
_PROCESS_LIMITS = (("Max address space", "VmSize"), ("Max data size", "VmData"))
"""Rows of /proc/self/limits, each with the row of /proc/self/status that counts against it."""


def available_bytes(
    num_processes: int = 1, root: Path = Path("/"), variables: Mapping[str, str] = os.environ
) -> float:
    """Return the bytes that this process may still allocate; infinity where the system reports no limit.

    Args:
        num_processes: number of processes that share the memory of the machine or job evenly.
        root: folder that contains `proc` and `sys`.
        variables: the environment.
    """
    used = _read_kilobytes(root / "proc/self/status")
    shared = [_read_kilobytes(root / "proc/meminfo").get("MemAvailable", _memory_without_proc(root))]
    shared += [_cgroup_headroom(folder) for folder in _cgroup_folders(root, "memory")]
    shared.append(_slurm_limit(variables) - num_processes * used.get("VmRSS", 0.0))
    own = [limit - used.get(usage, 0.0) for limit, usage in _process_limits(root)]
    return max(0.0, min(min(shared) / num_processes, *own, math.inf))


@cache
def cpu_quota(root: Path = Path("/")) -> float:
    """Return the CPU seconds that this process may use in a second, such as 1.5; infinity without a quota.

    Args:
        root: folder that contains `proc` and `sys`.
    """
    quotas = [math.inf]
    for folder in _cgroup_folders(root, "cpu"):
        words = [
            word for name in _CPU_FILES for line in _read_lines(folder / name)[:1] for word in line.split()
        ]
        if len(words) == 2:
            quotas.append(_parse_number(words[0]) / _parse_number(words[1]))
    return min(quotas)


def usable_cores(root: Path = Path("/")) -> int:
    """Return the number of CPU cores that this process may use, a part of one counted as a whole."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, cpu_quota(root))))


def _memory_without_proc(root: Path) -> float:
    """Return half of the memory of a machine that has no /proc, such as a Mac; what is free is unknown."""
    if root != Path("/") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return math.inf
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2


def _read_lines(path: Path) -> list[str]:
    """Read the lines of a file; none if it cannot be read."""
    with suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace").split("\n")
    return []


def _parse_number(text: str) -> float:
    """Parse a number; infinity for `max`, `unlimited`, -1 and anything else that is not one."""
    return float(text) if text.isdecimal() else math.inf


def _read_kilobytes(path: Path) -> dict[str, float]:
    """Read rows such as `MemAvailable:  1024 kB` into bytes by name."""
    rows = [line.split() for line in _read_lines(path)]
    return {row[0].rstrip(":"): 1024 * _parse_number(row[1]) for row in rows if row[2:] == ["kB"]}


def _process_limits(root: Path) -> Iterator[tuple[float, str]]:
    """Yield the soft limits of this process in bytes, each with the name of the usage that counts against it."""
    for line in _read_lines(root / "proc/self/limits"):
        for name, usage in _PROCESS_LIMITS:
            if line.startswith(name):
                yield _parse_number(line.removeprefix(name).split()[0]), usage


def _slurm_limit(variables: Mapping[str, str]) -> float:
    """Return the bytes that a SLURM job may use on this machine.

    SLURM gives megabytes, per machine or per CPU; 0 means all memory.
    """
    per_node, per_cpu = (variables.get(f"SLURM_MEM_PER_{unit}", "0") for unit in ("NODE", "CPU"))
    num_cpus = _parse_number(variables.get("SLURM_CPUS_ON_NODE", ""))
    limits = [_parse_number(per_node), _parse_number(per_cpu) * num_cpus]
    return min((2**20 * limit for limit in limits if limit > 0), default=math.inf)


def _cgroup_folders(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control group and of all its visible ancestors.

    Args:
        root: folder that contains `proc` and `sys`.
        controller: controller of cgroup v1, such as memory; v2 has one group for all.
    """
    rows = [line.split(":", 2) for line in _read_lines(root / "proc/self/cgroup") if line.count(":") >= 2]
    groups = {name: path for _, names, path in rows for name in names.split(",")}  # the name is empty in v2
    for line in _read_lines(root / "proc/self/mountinfo"):
        mount, _, system = line.partition(" - ")
        kind, options = system.split(" ")[0], system.split(" ")[-1].split(",")
        name = "" if kind == "cgroup2" else controller
        if kind not in ("cgroup", "cgroup2") or name not in ("", *options) or name not in groups:
            continue
        mounted_group, mount_point = mount.split(" ")[3:5]
        top, own = root / mount_point.lstrip("/"), PurePosixPath(groups[name])
        folder = top  # stays so if a cgroup namespace hides where the group is
        if own.is_relative_to(mounted_group) and ".." not in own.parts:
            folder = top / own.relative_to(mounted_group)
        yield folder
        yield from (parent for parent in folder.parents if parent.is_relative_to(top))


def _cgroup_headroom(folder: Path) -> float:
    """Return the bytes left in a control group, counting file pages as free if the kernel would reclaim them first."""
    rows = [line.split(" ") for line in _read_lines(folder / "memory.stat")]
    counts = {row[0]: _parse_number(row[1]) for row in rows if len(row) == 2}
    limits = [_parse_number(line) for name in _LIMIT_FILES for line in _read_lines(folder / name)[:1]]
    # In v1 this also covers ancestors that are not visible.
    limits.append(counts.get("hierarchical_memory_limit", math.inf))
    used = sum(_parse_number(line) for name in _USAGE_FILES for line in _read_lines(folder / name)[:1])
    return min(limits) - used + counts.get("total_inactive_file", counts.get("inactive_file", 0.0))

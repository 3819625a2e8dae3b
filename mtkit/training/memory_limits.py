"""How much memory a process may still take: the machine's, or what is left of a limit, whichever is the smallest.

A job often gets less than its machine has: by control groups (cgroup v1 and v2, its own group and all around it), by
its request to SLURM, or by limits of the process (setrlimit).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath

LIMITS = ("memory.max", "memory.high", "memory.limit_in_bytes")
"""Files of a control group; the first two of cgroup v2, the last of v1."""
_USAGES = ("memory.current", "memory.usage_in_bytes")
_PROCESS_LIMITS = (("Max address space", "VmSize"), ("Max data size", "VmData"))
"""Lines of /proc/self/limits, and what of /proc/self/status counts against them."""


def available_bytes(
    num_processes: int = 1, root: Path = Path("/"), variables: Mapping[str, str] = os.environ
) -> float:
    """Bytes that this process may still take; infinite where the system says nothing.

    Args:
        num_processes: processes that share the memory of the machine, or of the job, evenly.
        root: where `proc` and `sys` are.
        variables: the environment.
    """
    used = _named_kilobytes(root / "proc/self/status")
    shared = [_named_kilobytes(root / "proc/meminfo").get("MemAvailable", math.inf)]
    shared += [_group_room(folder) for folder in _group_folders(root)]
    shared.append(_slurm_limit(variables) - num_processes * used.get("VmRSS", 0.0))
    own = [limit - used.get(counted, 0.0) for limit, counted in _process_limits(root)]
    return max(0.0, min(min(shared) / num_processes, *own, math.inf))


def read_lines(path: Path) -> list[str]:
    """The lines of a file; none if there is no such file."""
    with suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace").split("\n")
    return []


def number(text: str) -> float:
    """A number of bytes; infinite for `max`, `unlimited` and what is none."""
    return float(text) if text.isdecimal() else math.inf


def _named_kilobytes(path: Path) -> dict[str, float]:
    """The values in bytes of lines like `MemAvailable:  1024 kB`."""
    rows = [line.split() for line in read_lines(path)]
    return {row[0].rstrip(":"): 1024 * number(row[1]) for row in rows if row[2:] == ["kB"]}


def _process_limits(root: Path) -> Iterator[tuple[float, str]]:
    """The soft limits of this process, each with the name of what counts against it."""
    for line in read_lines(root / "proc/self/limits"):
        for name, counted in _PROCESS_LIMITS:
            if line.startswith(name):
                yield number(line.removeprefix(name).split()[0]), counted


def _slurm_limit(variables: Mapping[str, str]) -> float:
    """What a SLURM job may take on this machine; megabytes for the machine or for each CPU, 0 is all there is."""
    per_node, per_cpu = (variables.get(f"SLURM_MEM_PER_{unit}", "0") for unit in ("NODE", "CPU"))
    num_cpus = variables.get("SLURM_CPUS_ON_NODE", "")
    limits = [number(per_node), number(per_cpu) * (number(num_cpus) if num_cpus.isdecimal() else math.inf)]
    return min((2**20 * limit for limit in limits if limit > 0), default=math.inf)


def _group_folders(root: Path) -> Iterator[Path]:
    """The folders of this process's control group for memory and of all groups around it that can be seen."""
    rows = [line.split(":", 2) for line in read_lines(root / "proc/self/cgroup") if line.count(":") >= 2]
    groups = {name: path for _, names, path in rows for name in names.split(",")}  # v2 has the empty name
    for line in read_lines(root / "proc/self/mountinfo"):
        mount, _, system = line.partition(" - ")
        kind, options = system.split(" ")[0], system.split(" ")[-1].split(",")
        controller = "" if kind == "cgroup2" else "memory"
        if kind not in ("cgroup", "cgroup2") or controller not in ("", *options) or controller not in groups:
            continue
        mounted_group, place = mount.split(" ")[3:5]
        top, own = root / place.lstrip("/"), PurePosixPath(groups[controller])
        folder = top
        if own.is_relative_to(mounted_group) and ".." not in own.parts:  # else a namespace hides where it is
            folder = top / own.relative_to(mounted_group)
        yield folder
        yield from (parent for parent in folder.parents if parent.is_relative_to(top))


def _group_room(folder: Path) -> float:
    """Bytes left in a control group. Pages of files that have not been used of late are given up for others."""
    rows = [line.split(" ") for line in read_lines(folder / "memory.stat")]
    counts = {row[0]: number(row[1]) for row in rows if len(row) == 2}
    limits = [number(line) for name in LIMITS for line in read_lines(folder / name)[:1]]
    limits.append(counts.get("hierarchical_memory_limit", math.inf))  # v1: also of groups that cannot be seen
    used = sum(number(line) for name in _USAGES for line in read_lines(folder / name)[:1])
    return min(limits) - used + counts.get("total_inactive_file", counts.get("inactive_file", 0.0))

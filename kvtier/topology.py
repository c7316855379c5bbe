"""What this machine is made of, read from the kernel: NUMA nodes and memory that is still free."""

from pathlib import Path

ROOT = Path("/")


def numa_nodes(root: Path = ROOT) -> tuple[int, ...]:
    """List the NUMA nodes that are online; a kernel without NUMA has node 0."""
    try:
        text = (root / "sys/devices/system/node/online").read_text()
    except OSError:
        return (0,)
    return parse_list(text)


def parse_list(text: str) -> tuple[int, ...]:
    """Read the kernel's list format, `0-3,8`."""
    numbers: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        numbers.extend(range(int(first), int(last or first) + 1))
    return tuple(numbers)


def free_nbytes(root: Path = ROOT) -> int:
    """Return the bytes that may still be taken without swapping: the machine's, or less where a cgroup says so."""
    lines = (root / "proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) << 10 for line in lines if "MemAvailable" in line)
    return max(0, min([available, *_cgroup_free(root)]))


def _cgroup_free(root: Path) -> list[int]:
    """Free bytes under each limit above this process, cgroup v2 and v1."""
    try:
        rows = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return []
    found: list[int] = []
    for _, controllers, path in rows:
        if not controllers:
            base, limit, used = "sys/fs/cgroup", "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            base, limit, used = (
                "sys/fs/cgroup/memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
            )
        else:
            continue
        top = root / base
        group = top / path.lstrip("/")
        for folder in [group, *group.parents]:
            if not folder.is_relative_to(top):
                break
            found += _room(folder, limit, used)
    return found


def _room(folder: Path, limit: str, used: str) -> list[int]:
    """Bytes below one limit; page cache that the kernel would drop counts as free."""
    try:
        most = (folder / limit).read_text().strip()
        if most == "max":
            return []
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        cache = int(stat.get("total_inactive_file", stat.get("inactive_file", "0")))
        return [int(most) - int((folder / used).read_text()) + cache]
    except (OSError, ValueError):
        return []

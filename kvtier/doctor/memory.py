"""Memory: nodes as the kernel describes them, huge pages, limits, and what the configuration takes of it."""

import resource
from collections.abc import Iterator

from kvtier import topology
from kvtier.config import default_dram_nbytes
from kvtier.doctor.finding import Finding, Level, Patient
from kvtier.memory.placement import HUGE_PAGE
from kvtier.units import format_nbytes


def nodes(patient: Patient) -> Iterator[Finding]:
    """Each node, its memory and processors, and what the firmware says of its speed."""
    found = topology.nodes(patient.root)
    if not found:
        advice = "memory is not bound; mount /sys in the container"
        yield Finding("numa", Level.WARN, "the kernel shows no NUMA nodes", advice)
    for node in found:
        kind = f"{len(node.cpus)} processors" if node.cpus else "no processors (CXL, or a device's)"
        what = (
            f"node {node.number}: {format_nbytes(node.free_nbytes)} free of "
            f"{format_nbytes(node.nbytes)}, {kind}, distances {node.distances}"
        )
        if node.latency_ns and node.bandwidth_mb_s:
            what += f"; the firmware says {node.latency_ns} ns, {node.bandwidth_mb_s / 1000:g} GB/s"
        yield Finding("numa", Level.OK, what)


def neighbours(patient: Patient) -> Iterator[Finding]:
    """Whether the arena's nodes are the GPUs', and the drives are on one of them."""
    near = {gpu.node for gpu in topology.gpus(patient.root)} - {None}
    configured = patient.config.tiers[0].numa if patient.config else None
    if configured and near and not near & set(configured):
        said = f"tiers[0].numa: {list(configured)}, and the GPUs are on {sorted(map(str, near))}"
        yield Finding("numa", Level.WARN, said, "leave `numa: auto`: each rank takes its GPU's")
    for drive in topology.drives(patient.root):
        if near and drive.node is not None and drive.node not in near:
            said = f"{drive.name} is on node {drive.node}, no GPU is"
            yield Finding("numa", Level.WARN, said, "prefer a drive beside the GPU for the tier")


def huge_pages(patient: Patient) -> Iterator[Finding]:
    """Explicit huge pages, or transparent ones for shared memory."""
    explicit = [
        (node.number, pages)
        for node in topology.nodes(patient.root)
        for pages in node.huge_pages
        if pages.page_nbytes == HUGE_PAGE and pages.total
    ]
    for number, pages in explicit:
        said = f"node {number}: {pages.free} of {pages.total} huge pages of 2MiB are free"
        yield Finding("huge pages", Level.OK, said)
    if not explicit:
        file = patient.root / "sys/kernel/mm/transparent_hugepage/shmem_enabled"
        mode = _chosen(file.read_text()) if file.is_file() else "unknown"
        usable = mode in ("advise", "always", "within_size", "force")
        advice = (
            ""
            if usable
            else (
                "reserve some (vm.nr_hugepages), or write advise to "
                "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
            )
        )
        level = Level.OK if usable else Level.WARN
        yield Finding("huge pages", level, f"no explicit ones; for shared memory: {mode}", advice)


def room(patient: Patient) -> Iterator[Finding]:
    """What the configuration takes against what there is."""
    free, limit = topology.free_nbytes(patient.root), topology.limit_nbytes(patient.root)
    # Nodes of a machine whose memory comes and goes show less than there is.
    total = max(free, sum(node.nbytes for node in topology.nodes(patient.root)))
    most = min(total, limit or total)
    said = f"{format_nbytes(free)} are free" + (
        f", the container's limit is {format_nbytes(limit)}" if limit else ""
    )
    wanted = _wanted(patient)
    if not wanted:
        yield Finding(
            "memory", Level.OK, f"{said}; without a file all ranks here together take a quarter"
        )
    elif wanted > most:
        advice = "lower the capacities of the dram and memory tiers"
        yield Finding("memory", Level.FAIL, f"{format_nbytes(wanted)} configured, {said}", advice)
    elif wanted > free:
        advice = "end what uses the memory, or lower the capacities"
        yield Finding("memory", Level.WARN, f"{format_nbytes(wanted)} configured, {said}", advice)
    else:
        yield Finding("memory", Level.OK, f"{format_nbytes(wanted)} configured, {said}")


def memlock(patient: Patient) -> Iterator[Finding]:
    """The limit of locked memory, which bounds registered buffers."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        yield Finding("memlock", Level.OK, "unlimited")
    elif topology.gpus(patient.root) and soft < (_wanted(patient) or 1 << 30):
        advice = "ulimit -l unlimited, or --ulimit memlock=-1 for the container"
        yield Finding("memlock", Level.WARN, f"limited to {format_nbytes(soft)}", advice)
    else:
        yield Finding("memlock", Level.OK, f"limited to {format_nbytes(soft)}; nothing needs more")


def _wanted(patient: Patient) -> int:
    """Bytes of DRAM that the configuration takes for good."""
    config = patient.config
    if config is None:
        return 0
    indexes = [*patient.tiers("dram"), *patient.tiers("memory")]
    return sum(config.tiers[i].capacity or default_dram_nbytes(1) for i in indexes)


def _chosen(text: str) -> str:
    """Read the word in brackets of `always [never]`."""
    return text.partition("[")[2].partition("]")[0] or "unknown"

"""GPUs and their links, NVMe drives, CXL memory, and what other tools say about them."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence

from kvtier import topology
from kvtier.doctor.finding import Finding, Level, Patient
from kvtier.topology import Card, CxlRegion, Gpu, Link
from kvtier.units import format_nbytes

Run = Callable[[Sequence[str]], str | None]


def gpus(patient: Patient) -> Iterator[Finding]:
    """Each GPU: on which node, and on how much of its link; also one that a container's /sys hides."""
    cards = {card.address: card for card in patient.nvml.cards}
    found = topology.gpus(patient.root)
    shown = {gpu.address for gpu in found}
    hidden = [Gpu(c.address, "NVIDIA", c.node, c.link) for c in cards.values()]
    found += tuple(gpu for gpu in hidden if gpu.address not in shown)
    if not found:
        yield Finding("gpu", Level.OK, "no GPU is here; vLLM's CPU backend is what can run")
    for gpu in found:
        yield _gpu(gpu, cards.get(gpu.address))
    if patient.nvml.error and any(gpu.vendor == "NVIDIA" for gpu in found):
        advice = "pip install 'kvtier[cuda]', and the driver's own libraries in a container"
        yield Finding("gpu", Level.WARN, f"NVML does not answer: {patient.nvml.error}", advice)
    if patient.nvml.driver:
        yield Finding("gpu", Level.OK, f"NVIDIA driver {patient.nvml.driver}")


def drives(patient: Patient) -> Iterator[Finding]:
    """Each NVMe drive, likewise."""
    for drive in topology.drives(patient.root):
        where = "" if drive.node is None else f" on node {drive.node}"
        if drive.link is None:
            yield Finding("nvme", Level.OK, f"{drive.name} {drive.model}{where}, no PCIe link")
            continue
        level, link, advice = _judge(drive.link)
        yield Finding("nvme", level, f"{drive.name} {drive.model}{where}, {link}", advice)


def cxl(patient: Patient) -> Iterator[Finding]:
    """CXL memory: devices, regions, and whether a region is a node that can be used."""
    devices, regions = topology.cxl_devices(patient.root), topology.cxl_regions(patient.root)
    used = {node.number for node in topology.nodes(patient.root) if node.memory_only}
    for device in devices:
        sizes = f"{format_nbytes(device.ram_nbytes)} volatile, {format_nbytes(device.pmem_nbytes)} persistent"
        yield Finding("cxl", Level.OK, f"{device.name}: {sizes}")
    for region in regions:
        what = f"{region.name}: {format_nbytes(region.nbytes)} of {region.mode}"
        if region.node in used:
            yield Finding("cxl", Level.OK, f"{what}, in use as node {region.node}")
        else:
            yield Finding("cxl", Level.WARN, f"{what} is no NUMA node with memory", _as_ram(region))
    if devices and not regions:
        advice = "cxl create-region, or let the firmware do it"
        yield Finding("cxl", Level.WARN, "devices, and no region made of them", advice)
    if not devices and not regions:
        yield Finding("cxl", Level.OK, "the kernel knows no CXL memory")


def cross_check(patient: Patient, run: Run | None = None) -> Iterator[Finding]:
    """Hold what the kernel shows against numactl, cxl and daxctl, where they are installed."""
    ask = run or _run
    if text := ask(["numactl", "--hardware"]):
        theirs = topology.parse_list(text.partition("(")[2].partition(")")[0])
        yield _compare("numactl", "nodes", theirs, topology.numa_nodes(patient.root))
    if text := ask(["cxl", "list", "-M"]):
        names = [str(each.get("memdev")) for each in _listed(text)]
        ours = [device.name for device in topology.cxl_devices(patient.root)]
        yield _compare("cxl list", "memory devices", sorted(names), ours)
    if text := ask(["daxctl", "list"]):
        nodes = sorted(each["target_node"] for each in _listed(text) if "target_node" in each)
        online = topology.numa_nodes(patient.root)
        missing = [node for node in nodes if node not in online]
        level = Level.WARN if missing else Level.OK
        advice = "daxctl reconfigure-device --mode=system-ram" if missing else ""
        yield Finding("tools", level, f"daxctl: nodes {nodes}, not online: {missing}", advice)


def _as_ram(region: CxlRegion) -> str:
    """Say how a region becomes a node; persistent memory needs a namespace first."""
    advice = "make it system RAM: daxctl reconfigure-device --mode=system-ram daxX.Y"
    if region.mode == "pmem" and region.node is None:
        return f"ndctl create-namespace --mode=devdax --region={region.name}, then {advice}"
    return advice


def _gpu(gpu: Gpu, card: Card | None) -> Finding:
    """Judge one GPU, with what NVML knows of it and its slot."""
    node = card.node if card and gpu.node is None else gpu.node
    where = "on no known node" if node is None else f"on node {node}"
    level, link, advice = _judge(card.link if card and card.link else gpu.link)
    name = f"{gpu.vendor} {gpu.address}"
    if card is None:
        return Finding("gpu", level, f"{name} {where}, {link}", advice)
    size = "" if card.nbytes is None else f", {format_nbytes(card.nbytes)}"
    said = f"{card.name} {card.address} {where}{size}, {link}"
    slot, own = card.slot_generation or 0, card.own_generation or 0
    if 0 < slot < own:
        said += f"; its slot gives PCIe {slot}, it could do {own}"
        level, advice = Level.WARN, advice or "use another slot, or the firmware's link speed"
    return Finding("gpu", level, said, advice)


def _judge(link: Link | None) -> tuple[Level, str, str]:
    """Judge a link by its width: an idle device slows its link, but keeps its lanes."""
    if link is None:
        return Level.OK, "its link is not readable", ""
    text = (
        f"x{link.width} of x{link.max_width}, {link.speed:g} of {link.max_speed:g} GT/s "
        f"({link.gb_s:.0f} GB/s at most)"
    )
    if link.width < link.max_width:
        return (
            Level.WARN,
            text,
            "lanes are missing: look at the slot, its riser and the bifurcation in the firmware",
        )
    return Level.OK, text + (", slowed down while idle" * (link.speed < link.max_speed)), ""


def _compare(tool: str, what: str, theirs: Sequence[object], ours: Sequence[object]) -> Finding:
    if list(theirs) == list(ours):
        return Finding("tools", Level.OK, f"{tool} sees the same {what}: {list(ours)}")
    said = f"{tool} sees {what} {list(theirs)}, the kernel shows {list(ours)}"
    return Finding("tools", Level.WARN, said, "a container may hide /sys; run it on the host")


def _listed(text: str) -> list[dict[str, int]]:
    try:
        found = json.loads(text)
    except ValueError:
        return []
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _run(command: Sequence[str]) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None

"""What this machine is made of, read from the kernel: NUMA nodes, GPUs, NVMe and CXL, memory that is free.

Every function takes the root of the tree that it reads, so that the machine of another can be looked at.
What cannot be read is absent, never an error.
"""

from kvtier.topology.cxl import CxlDevice, CxlRegion, cxl_devices, cxl_regions
from kvtier.topology.memory import free_nbytes, limit_nbytes
from kvtier.topology.nodes import (
    HugePages,
    Node,
    node_of_cpus,
    nodes,
    numa_nodes,
)
from kvtier.topology.nvml import Card, Nvml, ask_nvml
from kvtier.topology.pci import Drive, Gpu, Link, drives, gpus, node_of_pci
from kvtier.topology.sysfs import ROOT, parse_list

__all__ = [
    "ROOT",
    "Card",
    "CxlDevice",
    "CxlRegion",
    "Drive",
    "Gpu",
    "HugePages",
    "Link",
    "Node",
    "Nvml",
    "ask_nvml",
    "cxl_devices",
    "cxl_regions",
    "drives",
    "free_nbytes",
    "gpus",
    "limit_nbytes",
    "node_of_cpus",
    "node_of_pci",
    "nodes",
    "numa_nodes",
    "parse_list",
]

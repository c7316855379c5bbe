"""What must hold between the parts of a configuration, and between it and this machine."""

import os.path

from kvtier import topology
from kvtier.config.structs import Config, TierConfig
from kvtier.config.words import mistake
from kvtier.registry import is_asked
from kvtier.types import MAX_LOWER_TIERS, NOT_TIERS


def check(config: Config, *, here: bool) -> None:
    """Raise a ConfigError for what the structs allow but cannot work, on this machine if it is to run `here`."""
    if not config.tiers:
        raise mistake("tiers", "there is none; the first is always {name: dram, kind: dram}")
    if len(config.tiers) > 1 + MAX_LOWER_TIERS:
        raise mistake(
            f"tiers[{1 + MAX_LOWER_TIERS}]", f"at most {MAX_LOWER_TIERS} tiers below DRAM"
        )
    names: dict[str, int] = {}
    places: dict[str, int] = {}
    nodes = topology.numa_nodes()
    for index, tier in enumerate(config.tiers):
        path = f"tiers[{index}]"
        if tier.name in NOT_TIERS:
            raise mistake(f"{path}.name", f"{tier.name!r} means something else in the metrics")
        if (other := names.setdefault(tier.name, index)) != index:
            raise mistake(f"{path}.name", f"{tier.name!r} is the name of tiers[{other}] already")
        _check_capacity(tier, index, path)
        _check_place(tier, index, path, places, here)
        if index > 1 and not is_asked(tier.kind) and is_asked(config.tiers[index - 1].kind):
            above = config.tiers[index - 1].name
            raise mistake(
                path, f"below {above!r}, which engines share: this machine's own tiers go first"
            )
        if (tier.depth or 0) > (threads := config.io.threads):
            raise mistake(f"{path}.depth", f"{tier.depth} are more than io.threads, {threads}")
        for node in tier.numa or () if here else ():
            if node not in nodes:
                known = ", ".join(map(str, nodes))
                raise mistake(f"{path}.numa", f"there is no NUMA node {node}; here are: {known}")


def _check_capacity(tier: TierConfig, index: int, path: str) -> None:
    if tier.capacity is None and index > 0 and not is_asked(tier.kind):
        raise mistake(f"{path}.capacity", "missing; a lower tier needs one, for example 100GiB")
    if tier.capacity == 0:
        raise mistake(f"{path}.capacity", "0 holds nothing; remove the tier instead")


def _check_place(
    tier: TierConfig, index: int, path: str, places: dict[str, int], here: bool
) -> None:
    """Refuse a file tier in the directory of another: each locks its own."""
    if tier.kind != "file":
        return
    given = str(tier.options["path"])
    place = os.path.realpath(given) if here else os.path.normpath(given)
    if (other := places.setdefault(place, index)) != index:
        raise mistake(f"{path}.path", f"{given!r} is the directory of tiers[{other}] already")

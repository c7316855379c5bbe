"""What these tests run inside the engine's process, by `engine.call("tests.modes.inside:name", ...)`."""

from typing import Any

from tests.engine.faults import brain_of


def groups(llm: Any) -> list[list[str]]:
    """The layers of each KV-cache group."""
    config = llm.llm_engine.engine_core.engine_core.scheduler.kv_cache_config
    return [list(group.layer_names) for group in config.kv_cache_groups]


def slots(llm: Any, group: int) -> list[int]:
    """The slots of a group's chunks in tier 0."""
    view = brain_of(llm).view
    return [view.slot(key) for key in view.keys(0) if int.from_bytes(key[-4:], "big") == group]


def shift(llm: Any, slots: list[int]) -> None:
    """Give each of these slots what the next one holds: KV that is whole, and of another chunk."""
    llm.collective_rpc("shift_slots", args=(slots,))

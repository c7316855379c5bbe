"""Why something was refused: one word for each reason, the same in counters, logs and docs."""

from enum import StrEnum


class Why(StrEnum):
    """A reason, as a metric's label, and what it means. The last ones are for tiers that servers share."""

    text: str

    def __new__(cls, label: str, text: str) -> "Why":
        why = str.__new__(cls, label)
        why._value_ = label
        why.text = text
        return why

    # a load: the request's hit ends here
    ABSENT = "absent", "no tier holds it"
    EVICTED = "evicted", "it was given up for room: more capacity would have had it"
    HINT = "hint", "the request's own kv_transfer_params say so"
    ROLE = "role", "this engine's kv_role says so"
    ADAPTER = "adapter", "the request's LoRA adapter has other weights than its chunks, or may have"
    TIER_FILTER = "tier_filter", "the request's kv_load_tiers leave out the tiers that hold it"
    OPENING = "opening", "a tier is not open yet, or its records are still being listed"
    RESTING = "resting", "the tier that holds it rests after failures"
    TOO_DEAR = "too_dear", "reading costs more than computing"
    NO_SLOT = "no_slot", "no slot (all pinned)"
    TOO_LONG = "too_long", "DRAM has no room for all of it at once"
    READ_BUDGET = "read_budget", "as many reads are under way as may be"
    WAITING_FOR_ROOM = "waiting_for_room", "it waited for room for as long as a wait may be"
    LATE = "late", "its reads missed their deadline"
    FAILED = "failed", "a read failed, or the load"
    UNSEEN = "unseen", "no rank said in time whether the weights are still the same"
    VANISHED = "vanished", "it was gone when it was to be copied"

    # prompt tokens that are computed, where no hit ended early
    TAIL = (
        "tail",
        "it is computed in any case: the end of a prompt that fills no chunk, or has its last token",
    )
    UNASKED = "unasked", "vLLM did not ask for it"

    # a store, or a write into a lower tier
    NOT_ADMITTED = "not_admitted", "the admission policy refused it"
    VETOED = "vetoed", "a hook refused it"
    NO_ROOM = "no_room", "there is no room, and none could be made at once"
    FULL = "full", "the tier's medium is full, and writes into it wait"
    ORPHAN = "orphan", "its parent is in no tier"
    STALE = "stale", "its KV is of before a reset"
    BUSY = "busy", "another operation on it is under way, or as many as may be"

    # everything
    OFF = "off", "kvtier is off"

    # tiers that engines share
    ASKED_LATE = "asked_late", "a tier that engines share had not answered in time what it has"
    DETACHED = "detached", "the tier that engines share is closed for this one, since a reset"
    ASKING = "asking", "a tier was asked and has not answered"
    FOREIGN_HANDOFF = "foreign_handoff", "what was handed over is of another namespace"


OF_ASKED_TIERS = frozenset({Why.ASKING, Why.FOREIGN_HANDOFF})
OF_TOKENS = frozenset({Why.TAIL, Why.UNASKED})
OF_STORES = frozenset({Why.NOT_ADMITTED, Why.VETOED, Why.NO_ROOM, Why.FULL, Why.ORPHAN, Why.STALE})

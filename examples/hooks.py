"""Two hooks; `examples/hooks.yaml` shows how a configuration names them."""

from pathlib import Path

from kvtier.hook import HookEvent

LOG = Path("/tmp/kvtier-evictions.log")
SYSTEM_PROMPT_TOKENS = 2048


def log_to_file(event: HookEvent) -> None:
    """Append one line per event. A write to the page cache takes microseconds; beware of slow disks."""
    with LOG.open("a") as log:
        log.write(f"{event.kind} {event.tier} {event.key.hex()} {event.end_token}\n")


def keep_system_prompts(event: HookEvent) -> bool:
    """Refuse to evict what lies within the first tokens of a sequence, as long as anything else can go."""
    return not 0 < event.end_token <= SYSTEM_PROMPT_TOKENS

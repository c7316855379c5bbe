"""What a graceful restart keeps: tokens that the next server finds in NVMe, of those in any tier before.

Three times more KV than DRAM holds is stored; then nothing happens for 10 s; then SIGTERM.
"""

import time

from _engine import CHUNK, counter, dram, nvme, prompts, server_config, sources, workspace
from _report import machine, report

from kvtier.demo.client import complete
from kvtier.demo.server import serving

PROMPTS = 24
TOKENS = 1024 + 16  # eight chunks, and a few tokens that must be computed
IDLE_S = 10.0
TARGET = 0.95


def main() -> None:
    """Measure and report."""
    machine()
    with workspace() as folder:
        tiers = [dram("128MiB"), nvme(folder / "nvme", "2GiB")]
        config = server_config(folder, tiers, blocks=64, max_tokens=2048)
        asked = prompts(PROMPTS, TOKENS, seed=1)
        with serving(config, folder / "before.log") as server:
            for prompt in asked:
                complete(server.port, prompt, 1)
            time.sleep(IDLE_S)
            kept = (counter(server, "stored_chunks") - counter(server, "dropped_chunks")) * CHUNK
            if kept > PROMPTS * TOKENS:
                raise RuntimeError(f"{kept} tokens stored of {PROMPTS * TOKENS}")
            started = time.perf_counter()
            if not server.close():
                raise RuntimeError(f"the server did not leave by itself\n{server.log_tail()}")
            report("restart", "SIGTERM to the end", time.perf_counter() - started, "s")
        with serving(config, folder / "after.log") as server:
            for prompt in asked:
                complete(server.port, prompt, 1)
            found = sources(server).nvme
        report("restart", "tokens in DRAM and NVMe before", kept, "tokens")
        report("restart", "tokens served from NVMe after", found, "tokens")
        report("restart", "share kept", found / kept, "of tokens", TARGET)


if __name__ == "__main__":
    main()

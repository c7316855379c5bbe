"""A brain over real I/O processes that die while they list what a directory holds: it knows all of it, once."""

import os
import signal
from pathlib import Path

import pytest

from kvtier.io_process.record import namespace_of
from tests.io_process.node import NBYTES, node
from tests.io_process.rig import MANIFEST, key_of

RECORDS = 20_000


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks left behind, names and sizes only: nothing here is read."""
    path = tmp_path_factory.mktemp("scan") / "kv"
    for rank in range(2):
        root = path / namespace_of(MANIFEST) / f"r{rank}"
        shards: set[str] = set()
        for i in range(RECORDS):
            name = key_of(i).hex()
            if name[:2] not in shards:
                (root / name[:2]).mkdir(parents=True)
                shards.add(name[:2])
            fd = os.open(root / name[:2] / f"{name}.kvt", os.O_CREAT | os.O_WRONLY, 0o600)
            os.ftruncate(fd, NBYTES)
            os.close(fd)
    return path


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("moments", ["start", "middle", "start middle"])
def test_a_process_that_dies_before_its_list_is_whole_begins_anew(
    directory: Path, ranks: int, moments: str
) -> None:
    with node(directory, ranks, 2 * RECORDS * NBYTES) as made:
        for moment in moments.split():
            if moment == "start":
                made.signal(0, signal.SIGSTOP)
                made.step()  # OPEN is on its way
            else:
                seen = len(made.batches)
                made.until(lambda: made.listed(0, seen), "the list begins")  # noqa: B023
                assert not any(batch.done for batch in made.batches if batch.rank == 0)
            made.kill(0)
            made.until(lambda: made.clients[0].alive, "the next process is there")
            made.ahead_s += 2.0  # the brain, too, opens again, while that one lists
        made.until(made.settled, "the list is taken in")
        made.brain.check()
        tier = made.brain.stats().tiers[1]
        assert (tier.chunks, tier.used) == (RECORDS, ranks * RECORDS * NBYTES)
        assert sum(1 for _ in directory.rglob("*.kvt")) == 2 * RECORDS

"""A tier of files lies on a disk of its own machine, or its user promises that it has the directory alone."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from kvtier.cli.main import build
from kvtier.doctor.disks import look
from kvtier.doctor.finding import Level
from kvtier.errors import ConfigError
from kvtier.testing.tiers import FIRST, pages
from kvtier.tier import Site
from kvtier.tiers import mount
from kvtier.tiers.file import FileConfig, FileTier
from kvtier.tiers.mount import Mount, mount_of
from tests import trees

SHARED = ["nfs", "nfs4", "lustre", "ceph", "cifs", "9p", "virtiofs", "fuse.juicefs", "fuse.sshfs"]
ALONE = ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "fuseblk", "fuse.mergerfs", "zfs"]


def lies_on(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(path: Path, root: Path = Path("/")) -> Mount:
        return Mount("/mnt/kv", kind, "0:27")

    monkeypatch.setattr(mount, "mount_of", found)
    monkeypatch.setattr("kvtier.doctor.disks.mount_of", found)


def start(path: Path, *, exclusive: bool = False) -> FileTier:
    return FileTier(FileConfig(path=str(path), exclusive=exclusive), Site("kv"))


def config_check(path: Path, **more: bool) -> str:
    tier = {"kind": "file", "path": str(path), "capacity": "1MiB", **more}
    file = path.parent / "kvtier.yaml"
    file.write_text(yaml.safe_dump({"tiers": [{"kind": "dram", "capacity": "1MiB"}, tier]}))
    done = CliRunner().invoke(build(), ["config", "check", str(file)], env={"COLUMNS": "300"})
    return f"{done.output} {done.exception}"


@pytest.mark.parametrize("kind", SHARED)
def test_a_network_file_system_is_refused_by_name(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kv"
    lies_on(kind, monkeypatch)
    with pytest.raises(ConfigError, match=f"tier 'kv': {path}: /mnt/kv is {kind}, which other"):
        start(path)
    assert not path.exists(), "it was refused and made"
    assert f"tiers[1].path: {path}: /mnt/kv is {kind}" in config_check(path)
    assert Level.FAIL in [finding.level for finding in look(path)]


@pytest.mark.parametrize("kind", ALONE)
def test_a_disk_of_the_machine_is_not(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lies_on(kind, monkeypatch)
    start(tmp_path / "kv").close()
    assert "other machines" not in config_check(tmp_path / "kv")


def test_whoever_promises_to_be_alone_is_warned_and_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lies_on("nfs4", monkeypatch)
    tier = start(tmp_path / "kv", exclusive=True)
    tier.open(FIRST, "{}")
    tier.write(b"k", [pages(1)])
    tier.close()
    found = {each.level: each.advice for each in look(tmp_path / "kv", exclusive=True)}
    assert Level.FAIL not in found
    assert "promises that no other engine" in found[Level.WARN]
    assert "/mnt/kv is nfs4" in config_check(tmp_path / "kv", exclusive=True)


def test_the_innermost_mount_counts(tmp_path: Path) -> None:
    inner = tmp_path / "a b"
    inner.mkdir()
    escaped = str(inner).replace(" ", "\\040")
    lines = [
        "1 0 8:1 / / rw - ext4 /dev/sda rw",
        f"2 1 0:9 / {escaped} rw - nfs4 server:/kv rw",
    ]
    trees.write(tmp_path, "proc/self/mountinfo", "\n".join(lines))
    assert mount_of(tmp_path, tmp_path).kind == "ext4"
    found = mount_of(inner, tmp_path)
    assert (found.kind, found.point, found.is_shared) == ("nfs4", str(inner), True)

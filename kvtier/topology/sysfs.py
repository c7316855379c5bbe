"""Reading /sys and /proc: one value per file, and what is not there is None."""

from pathlib import Path

ROOT = Path("/")


def text(path: Path) -> str | None:
    """Return a file's text without its white space; None where it cannot be read."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None


def number(path: Path) -> int | None:
    """Return the number in a file, decimal or 0x; None where there is none."""
    try:
        return int(text(path) or "", 0)
    except ValueError:
        return None


def children(folder: Path, pattern: str = "*") -> list[Path]:
    """List what matches in a folder, by name; nothing where it cannot be read."""
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []


def parse_list(text: str) -> tuple[int, ...]:
    """Read the kernel's list format, `0-3,8`."""
    numbers: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        numbers.extend(range(int(first), int(last or first) + 1))
    return tuple(numbers)


def known_node(node: int | None) -> int | None:
    """Translate the kernel's -1, no node in particular, to None."""
    return None if node is None or node < 0 else node

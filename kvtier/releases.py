"""Which releases of vLLM kvtier was run with: one range for the engine's start and the doctor."""

OLDEST, NEWEST = (0, 31), (0, 33)
SUPPORTED = f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"


def supported(version: str) -> bool:
    """Whether a version of vLLM is one of them; what is no number, such as `dev`, is none."""
    return OLDEST <= numbers(version) <= NEWEST


def numbers(version: str) -> tuple[int, int]:
    """Read major and minor of a version; (0, 0) where there is none."""
    major, _, rest = version.partition(".")
    minor = "".join(c for c in rest.partition(".")[0] if c.isdigit())
    return int(major) if major.isdigit() else 0, int(minor or 0)

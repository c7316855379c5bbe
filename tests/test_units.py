import pytest

from kvtier.units import format_nbytes, parse_nbytes, parse_seconds


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("64GiB", 64 << 30),
        ("512MiB", 512 << 20),
        ("1TiB", 1 << 40),
        ("1.5 KiB", 1536),
        ("7B", 7),
        ("4096", 4096),
        (4096, 4096),
        (0, 0),
    ],
)
def test_sizes(text: object, nbytes: int) -> None:
    assert parse_nbytes(text) == nbytes


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1", -1, 1.5, True, None, "1e9", "64 GiB each", "64gb"]
)
def test_what_is_not_a_size(text: object) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_nbytes(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("2s", 2.0), ("500ms", 0.5), ("1.5s", 1.5), ("2min", 120.0), (3, 3.0)]
)
def test_durations(text: object, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "2", "s", "0s", -1, 0, True, None, float("inf"), float("nan")]
)
def test_what_is_not_a_duration(text: object) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_seconds(text)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0B"), (1023, "1023B"), (1024, "1KiB"), (3 << 29, "1.5GiB"), (1 << 40, "1TiB")],
)
def test_sizes_are_written_as_they_are_read(nbytes: int, text: str) -> None:
    assert format_nbytes(nbytes) == text
    assert parse_nbytes(text) == nbytes

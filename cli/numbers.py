"""Numbers on the command line: one, several, or a file of them."""

from __future__ import annotations

from pathlib import Path

__all__ = ["parse_numbers", "parse_thresholds"]


def parse_numbers(text: str | None, option: str) -> list[float] | None:
    """From `0.5`, `0.49,0.46,0.41`, a `.npy` file, or a text file with a number on each line.

    Raises:
        InputError: It is none of these.
    """
    from ..graph.errors import InputError

    if text is None:
        return None
    try:
        if not Path(text).is_file():
            return [float(part) for part in text.split(",")]
        return _read(Path(text))
    except (ValueError, OSError) as error:
        raise InputError(
            f"{option} {text!r}",
            expected="a number, several as 0.49,0.46,0.41, or a .npy or text file of them",
        ) from error


def parse_thresholds(items: list[str] | None) -> dict[str, float]:
    """From `GF101.growth=50` and the like.

    Raises:
        InputError: One of them is no name with a number.
    """
    from ..graph.errors import InputError

    parsed = {}
    for item in items or []:
        name, _, number = item.partition("=")
        try:
            parsed[name.strip()] = float(number)
        except ValueError:
            raise InputError(
                f"threshold {item!r}", expected="a name and a number, as GF101.growth=50"
            ) from None
    return parsed


def _read(path: Path) -> list[float]:
    import numpy as np

    array = np.load(path, allow_pickle=False) if path.suffix == ".npy" else np.loadtxt(path)
    return [float(number) for number in np.asarray(array, dtype=np.float64).reshape(-1)]

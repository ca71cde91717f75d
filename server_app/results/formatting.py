"""Numbers for people: in the page, the plots and the console. A dash stands for what there is not."""

from collections.abc import Iterable

from common.evaluation import AFTER_TRAINING, VALIDATION

NOTHING = "–"
FURTHER_TESTS = {AFTER_TRAINING: "after one epoch", VALIDATION: "validation"}  # as heads of columns


def format_decimals(value: float | None) -> str:
    """Format an accuracy or a loss: `0.512`."""
    return NOTHING if value is None else f"{value:.3f}"


def format_count(value: int | None) -> str:
    """Format a number of things: `239,856`."""
    return NOTHING if value is None else f"{value:,}"


def format_range(values: Iterable[int | None]) -> str:
    """Format the numbers that several things have: `79`, or `79 to 120` where they differ."""
    distinct = sorted({value for value in values if value is not None})
    if len(distinct) > 1:
        return f"{distinct[0]:,} to {distinct[-1]:,}"
    return format_count(distinct[0] if distinct else None)


def format_duration(seconds: float) -> str:
    """Format seconds: `4.1 s`, `1 min 58 s`, `2 h 05 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def format_bytes(count: float) -> str:
    """Format a number of bytes, in decimal units: `1.23 GB`."""
    scale, unit = byte_unit(count)
    return f"{count / scale:.0f} {unit}" if scale == 1 else f"{count / scale:.3g} {unit}"


def byte_unit(count: float) -> tuple[int, str]:
    """Return the unit that suits a number of bytes: how many bytes it is, and its name."""
    # 999.5 and not 1000: three digits of 999,700 would read "1e+03 kB".
    for scale, unit in ((1, "bytes"), (10**3, "kB"), (10**6, "MB"), (10**9, "GB")):
        if count < 999.5 * scale:
            return scale, unit
    return 10**12, "TB"

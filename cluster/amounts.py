"""Durations and sizes as people read them."""


def duration(seconds: object) -> str:
    """'3 d 04:05:06' or '04:05:06'."""
    if not isinstance(seconds, int | float):
        return "-"
    days, rest = divmod(int(seconds), 86_400)
    clock = f"{rest // 3_600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{days} d {clock}" if days else clock


def size(count: object) -> str:
    if not isinstance(count, int | float):
        return "-"
    amount, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while amount >= 1_024 and len(units) > 1:
        amount /= 1_024
        del units[0]
    return f"{amount:.0f} {units[0]}" if units[0] == "B" else f"{amount:.1f} {units[0]}"

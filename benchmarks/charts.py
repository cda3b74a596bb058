"""Charts of a run as SVG, on a ground of their own, so that they can be read on light and on dark pages."""

from collections.abc import Mapping
from html import escape
from pathlib import Path

from .report import Figure, Report

WIDTH, HEIGHT = 820, 380
LEFT, RIGHT, TOP, BOTTOM = 78, 16, 78, 46
COLOURS = ("#57606a", "#d1903f", "#2f6fb7", "#3a9b6f")
Groups = Mapping[str, Mapping[str, Figure]]


def write(reports: Mapping[str, Report], folder: Path) -> list[Path]:
    """The charts of those parts that were run, in that folder."""
    made = {
        "throughput": ("operations", "Single operations per second, by number of clients", _throughput),
        "batches": ("batches", "Items per second, by size of the batch", _batches),
        "growth": ("growth", "Operations per second with 8 threads, by transactions in the ledger", _growth),
    }
    written = []
    for name, (part, title, groups_of) in made.items():
        if part in reports:
            figures = {figure.what: figure for figure in reports[part].figures}
            written.append(folder / f"performance-{name}.svg")
            written[-1].write_text(bars(title, groups_of(figures)))
    return written


def _throughput(figures: Mapping[str, Figure]) -> Groups:
    groups: dict[str, dict[str, Figure]] = {}
    for operation in ("hold", "settle"):
        for number in (1, 8, 32):
            names = {
                "pgbench (the floor)": f"floor: {operation}, {number}",
                "by hand with SQLModel": f"by hand: {operation}, {number}",
                "the module, one process": f"module: {operation}, {number}",
                "the module, two processes": f"module: {operation}, 2 x {number}",
            }
            groups[f"{operation}, {number}"] = {name: figures[key] for name, key in names.items() if key in figures}
    return groups


def _batches(figures: Mapping[str, Figure]) -> Groups:
    groups: dict[str, dict[str, Figure]] = {}
    for what, figure in figures.items():
        if what.startswith("floor: single "):
            groups[f"{what.removeprefix('floor: single ').split(', ')[0]}, single"] = {
                "pgbench, single operations": figure
            }
        elif ", batches of " in what:
            operation, size, *_ = what.removeprefix("module: ").split(", ")
            groups[f"{operation}s, {size.removeprefix('batches of ')}"] = {"the module": figure}
    return groups


def _growth(figures: Mapping[str, Figure]) -> Groups:
    groups: dict[str, dict[str, Figure]] = {}
    for what, figure in figures.items():
        operation, _, size = what.removeprefix("module: ").split(", ", 2)
        groups.setdefault(size.removeprefix("on ").removesuffix(" transactions"), {})[operation] = figure
    return groups


def bars(title: str, groups: Groups) -> str:
    """Groups of bars, as high as the medians, with a line from the lowest to the highest round."""
    series = list(dict.fromkeys(name for group in groups.values() for name in group))
    top, step = _scale(max(figure.high for group in groups.values() for figure in group.values()))
    parts = [_frame(title), *_legend(series), *_grid(top, step)]
    room = (WIDTH - LEFT - RIGHT) / len(groups)
    for number, (name, group) in enumerate(groups.items()):
        start = LEFT + number * room
        wide = min(room * 0.8 / len(group), 60)
        first = start + (room - wide * len(group)) / 2
        parts.append(_text(start + room / 2, HEIGHT - BOTTOM + 20, name, anchor="middle"))
        for place, (of, figure) in enumerate(group.items()):
            parts.append(_bar(first + place * wide, wide * 0.9, figure, top, COLOURS[series.index(of) % len(COLOURS)]))
    return "\n".join([*parts, "</svg>", ""])


def _frame(title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12">\n<title>{escape(title)}</title>\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#ffffff" stroke="#d0d7de"/>\n'
        f'<text x="20" y="28" font-size="15" font-weight="600" fill="#1f2328">{escape(title)}</text>'
    )


def _legend(series: list[str]) -> list[str]:
    parts, x = [], 20
    for number, name in enumerate(series):
        parts.append(f'<rect x="{x}" y="43" width="12" height="12" rx="2" fill="{COLOURS[number % len(COLOURS)]}"/>')
        parts.append(_text(x + 18, 53, name))
        x += 36 + 7 * len(name)
    return parts


def _grid(top: float, step: float) -> list[str]:
    parts = []
    for number in range(round(top / step) + 1):
        y = _height(number * step, top)
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#d8dee4"/>')
        parts.append(_text(LEFT - 8, y + 4, f"{number * step:,.0f}", anchor="end"))
    return parts


def _bar(x: float, wide: float, figure: Figure, top: float, colour: str) -> str:
    y, low, high = (_height(value, top) for value in (figure.median, figure.low, figure.high))
    middle = x + wide / 2
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{HEIGHT - BOTTOM - y:.1f}" fill="{colour}"/>\n'
        f'<line x1="{middle:.1f}" y1="{low:.1f}" x2="{middle:.1f}" y2="{high:.1f}" stroke="#1f2328"/>\n'
        + _text(middle, high - 4, _short(figure.median), anchor="middle", size=9)
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="#424a53">{escape(text)}</text>'
    )


def _short(value: float) -> str:
    return f"{value / 1000:.1f}k" if value >= 1000 else f"{value:.0f}"


def _height(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - value / top * (HEIGHT - BOTTOM - TOP)


def _scale(highest: float) -> tuple[float, float]:
    """A round number not below the highest, and the distance of the lines."""
    step = 1.0
    while highest / step > 6:
        step *= 2.5 if str(step)[0] == "2" else 2
    return step * -(-highest // step), step

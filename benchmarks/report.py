"""What a run has found: figures for the table and for results.json, and the summary's plain numbers."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from .measure import Series

# What each number of the summary should be at least or at most.
TARGETS: dict[str, tuple[str, float]] = {
    "hold_vs_floor": ("≥", 0.5),
    "settle_vs_floor": ("≥", 0.5),
    "hold_vs_floor_2_processes": ("≥", 0.65),
    "settle_vs_floor_2_processes": ("≥", 0.65),
    "hold_vs_by_hand": ("≥", 8),
    "settle_vs_by_hand": ("≥", 8),
    "hot_model_vs_floor": ("≥", 0.8),
    "hot_model_vs_by_hand": ("≥", 20),
    "hot_model_failed": ("≤", 0),
    "hot_user_vs_by_hand": ("≥", 10),
    "hot_user_failed": ("≤", 0),
    "batch_hold_vs_floor": ("≥", 1.5),
    "batch_settle_vs_floor": ("≥", 1),
    "batch_10000_mb": ("≤", 100),
    "round_trips_hold": ("≤", 2),
    "round_trips_settle": ("≤", 2),
    "round_trips_balance": ("≤", 1),
    "growth_hold": ("≤", 1.25),
    "growth_settle": ("≤", 1.25),
    "cached_replay_us": ("≤", 50),
    "memory_growth_mb": ("≤", 10),
}


@dataclass(frozen=True, kw_only=True)
class Form:
    """How much a run measures: slices of so many seconds, in so many rounds.

    ``threads`` are those at which everything is measured that is always measured at 8; ``growth`` and
    ``memory`` are in transactions, ``ledger`` is in thousand entries.
    """

    seconds: float
    rounds: int
    threads: tuple[int, ...]
    zipf: bool
    batch_threads: tuple[int, ...]
    growth: tuple[int, ...]
    memory: tuple[int, ...]
    ledger: tuple[int, ...]
    ledger_rounds: int


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One line of the table: the median of the rounds with the lowest and the highest."""

    what: str
    unit: str
    median: float
    low: float
    high: float
    p50_us: float | None = None
    p99_us: float | None = None
    failed: int = 0


@dataclass(frozen=True)
class Report:
    """The figures of one part of a run, and what it adds to the summary."""

    figures: list[Figure] = field(default_factory=list)
    summary: dict[str, float] = field(default_factory=dict)

    def add(self, what: str, unit: str, values: Sequence[float]) -> None:
        low, middle, high = min(values), statistics.median(values), max(values)
        self.figures.append(Figure(what=what, unit=unit, median=middle, low=low, high=high))

    def add_series(self, what: str, series: Series) -> None:
        """Operations per second, with the latencies of single ones and the number of those that failed."""
        self.figures.append(
            Figure(
                what=what,
                unit="/s",
                median=series.median,
                low=min(series.rates),
                high=max(series.rates),
                p50_us=series.latency_us(50),
                p99_us=series.latency_us(99),
                failed=series.failed,
            )
        )

    def as_dict(self) -> dict[str, dict[str, Any]]:
        return {
            figure.what: {
                name: round(value, 2) if isinstance(value, float) else value
                for name, value in asdict(figure).items()
                if name != "what" and value is not None
            }
            for figure in self.figures
        }


def show(reports: dict[str, Report], others: dict[str, dict[str, Any]], summary: dict[str, float]) -> None:
    """One table: what was measured, part by part, the ledger's figures, and the summary against the targets."""
    table = Table("part", "what", "median", "lowest", "highest", "p50 µs", "p99 µs", "failed")
    table.columns[1].no_wrap = True
    for column in table.columns[2:]:
        column.justify = "right"
    for part, report in reports.items():
        for figure in report.figures:
            values = (figure.median, figure.low, figure.high)
            shown = [_short(value) for value in values]
            shown[0] += figure.unit if figure.unit.startswith("/") else f" {figure.unit}".rstrip()
            latencies = ["" if value is None else _short(value) for value in (figure.p50_us, figure.p99_us)]
            table.add_row(part, figure.what, *shown, *latencies, str(figure.failed) if figure.failed else "")
        table.add_section()
    for part, figures in others.items():
        for name, value in figures.items():
            table.add_row(part, name, _short(value) if isinstance(value, int | float) else str(value))
        table.add_section()
    for name, value in summary.items():
        table.add_row("summary", name, f"{value:g}", *_against_target(name, value))
    console = Console()
    console.width = max(console.width, 150)
    console.print(table)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _against_target(name: str, value: float) -> list[str]:
    if name not in TARGETS:
        return []
    relation, target = TARGETS[name]
    met = value >= target if relation == "≥" else value <= target
    return [f"{relation} {target:g}", "met" if met else "[bold]missed[/bold]"]

"""Small charts as SVG text that a page holds itself: their colours are the page's, in light and in dark.

A series is drawn with the class ``s0`` to ``s6`` (its colour) and a marker of its own shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 480
"""Units of the drawing; a phone shows 480 of them at about 350 pixels, so text has 13."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 44
_LETTER = 7.6
"""Width of a letter of a wide font of 13 units, on average."""


@dataclass(frozen=True)
class Point:
    """A value, and the ends of its band or error bar."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """A line or a column of dots."""

    label: str
    colour: int
    points: Sequence[Point]


def line_chart(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    log_x: bool = False,
    level: tuple[float, str] | None = None,
    height: int = 320,
) -> str:
    """Lines with markers, a band where points have ends, and at most one dashed ``level`` with its name."""
    points = [point for item in series for point in item.points]
    xs = [_log(point.x) if log_x else point.x for point in points]
    ys = [value for point in points for value in (point.y, point.low, point.high) if value is not None]
    if level is not None and min(ys) - 0.5 * (max(ys) - min(ys)) <= level[0]:
        ys.append(level[0])
    x_low, x_high = (min(xs), max(xs)) if log_x else (min(0.0, *xs), max(xs))
    x_low, x_high = (x_low - 0.1, x_high + 0.1) if log_x else (x_low, x_high or 1.0)
    y_ticks = _ticks(min(ys), max(ys))
    y_low, y_high = min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys))

    def place_x(value: float) -> float:
        share = ((_log(value) if log_x else value) - x_low) / (x_high - x_low)
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    def place_y(value: float) -> float:
        return height - _BOTTOM - (value - y_low) / (y_high - y_low) * (height - _TOP - _BOTTOM)

    parts = [_grid(place_y(tick), _number(tick, y_ticks)) for tick in y_ticks]
    x_ticks = sorted({point.x for point in points}) if log_x else _ticks(x_low, x_high)
    parts += [
        f'<text x="{place_x(tick):.1f}" y="{height - _BOTTOM + 18}" class="tick" text-anchor="middle">'
        f"{f'{tick:g}' if log_x else _number(tick, x_ticks)}</text>"
        for tick in x_ticks
        if _LEFT - 1 <= place_x(tick) <= WIDTH - _RIGHT + 1
    ]
    parts.append(
        f'<text x="{(WIDTH + _LEFT) / 2:.0f}" y="{height - 6}" class="name" text-anchor="middle">'
        f"{escape(x_label)}</text>"
    )
    parts.append(
        f'<text transform="translate(12 {(height - _BOTTOM) / 2:.0f}) rotate(-90)" class="name" '
        f'text-anchor="middle">{escape(y_label)}</text>'
    )
    if level is not None and y_low <= level[0] <= y_high:
        y = place_y(level[0])
        parts.append(f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="level"/>')
        parts.append(
            f'<text x="{WIDTH - _RIGHT}" y="{y - 4:.1f}" class="tick" text-anchor="end">{escape(level[1])}</text>'
        )
    for item in series:
        parts.append(_line(item, place_x, place_y))
    return _svg(height, parts, f"{y_label} over {x_label}")


def dot_chart(rows: Sequence[str], series: Sequence[Series], x_label: str, *, level: float | None = None) -> str:
    """A row for each name, in which every series has a dot with its error bar; a point's ``y`` is the row's number."""
    left, step = round(16 + _LETTER * max(map(len, rows))), 14 + 7 * len(series)
    height = _TOP + step * len(rows) + _BOTTOM
    values = [
        value
        for item in series
        for point in item.points
        for value in (point.x, point.low, point.high)
        if value is not None
    ]
    ticks = _ticks(min([*values, *([level] if level is not None else [])]), max(values))

    def place(value: float) -> float:
        return left + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (WIDTH - left - _RIGHT)

    bottom = height - _BOTTOM
    parts = []
    for tick in ticks:
        x = place(tick)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}" class="grid"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{bottom + 18}" class="tick" text-anchor="middle">{_number(tick, ticks)}</text>'
        )
    if level is not None:
        parts.append(f'<line x1="{place(level):.1f}" x2="{place(level):.1f}" y1="{_TOP}" y2="{bottom}" class="level"/>')
    for number, name in enumerate(rows):
        y = _TOP + step * (number + 0.5)
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" class="tick" text-anchor="end">{escape(name)}</text>')
        if number:
            top = f"{y - step / 2:.1f}"
            parts.append(f'<line x1="{left}" x2="{WIDTH - _RIGHT}" y1="{top}" y2="{top}" class="grid"/>')
    for index, item in enumerate(series):
        for point in item.points:
            y = _TOP + step * (point.y + 0.5) + 7 * (index - (len(series) - 1) / 2)
            if point.low is not None and point.high is not None:
                parts.append(
                    f'<line x1="{place(point.low):.1f}" x2="{place(point.high):.1f}" y1="{y:.1f}" y2="{y:.1f}" '
                    f'class="bar s{item.colour % 7}"/>'
                )
            parts.append(marker(item.colour, place(point.x), y))
    parts.append(
        f'<text x="{(WIDTH + left) / 2:.0f}" y="{height - 6}" class="name" text-anchor="middle">'
        f"{escape(x_label)}</text>"
    )
    return _svg(height, parts, x_label)


def marker(colour: int, x: float, y: float) -> str:
    """The mark of a series: seven shapes for seven colours, so that they are told apart without them."""
    kind = f'class="mark s{colour % 7}"'
    shapes = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" {kind}/>',
        f'<rect x="{x - 3.6:.1f}" y="{y - 3.6:.1f}" width="7.2" height="7.2" {kind}/>',
        _polygon(x, y, ((0, -4.8), (4.6, 3.4), (-4.6, 3.4)), kind),
        _polygon(x, y, ((0, -5), (5, 0), (0, 5), (-5, 0)), kind),
        _polygon(x, y, ((-4.6, -3.4), (4.6, -3.4), (0, 4.8)), kind),
        _polygon(
            x,
            y,
            (
                (-1.5, -4.5),
                (1.5, -4.5),
                (1.5, -1.5),
                (4.5, -1.5),
                (4.5, 1.5),
                (1.5, 1.5),
                (1.5, 4.5),
                (-1.5, 4.5),
                (-1.5, 1.5),
                (-4.5, 1.5),
                (-4.5, -1.5),
                (-1.5, -1.5),
            ),
            kind,
        ),
        _polygon(x, y, ((-5, 0), (3, -4.6), (3, 4.6)), kind),
    )
    return shapes[colour % 7]


def swatch(colour: int) -> str:
    """The mark alone, for a legend."""
    return f'<svg class="swatch" viewBox="0 0 14 14" aria-hidden="true">{marker(colour, 7, 7)}</svg>'


def _line(item: Series, place_x: object, place_y: object) -> str:
    assert callable(place_x) and callable(place_y)
    kind = f"s{item.colour % 7}"
    ends = [
        (point.x, point.low, point.high) for point in item.points if point.low is not None and point.high is not None
    ]
    parts = []
    if len(ends) == len(item.points) > 1:
        path = [f"{place_x(x):.1f},{place_y(high):.1f}" for x, _, high in ends]
        path += [f"{place_x(x):.1f},{place_y(low):.1f}" for x, low, _ in reversed(ends)]
        parts.append(f'<polygon points="{" ".join(path)}" class="band {kind}"/>')
    path = [f"{place_x(point.x):.1f},{place_y(point.y):.1f}" for point in item.points]
    parts.append(f'<polyline points="{" ".join(path)}" class="line {kind}"/>')
    parts += [marker(item.colour, place_x(point.x), place_y(point.y)) for point in item.points]
    return f"<g><title>{escape(item.label)}</title>{''.join(parts)}</g>"


def _grid(y: float, text: str) -> str:
    return (
        f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
        f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" class="tick" text-anchor="end">{text}</text>'
    )


def _polygon(x: float, y: float, corners: Sequence[tuple[float, float]], kind: str) -> str:
    return f'<polygon points="{" ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)}" {kind}/>'


def _svg(height: int, parts: Sequence[str], title: str) -> str:
    head = f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
    return f"{head}{''.join(parts)}</svg>"


def _log(value: float) -> float:
    return math.log10(value)


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers around ``low`` and ``high``."""
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if (high - low) / (step * factor) <= 6)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _number(value: float, ticks: Sequence[float]) -> str:
    """With as many decimals as tell the ticks apart."""
    step = ticks[1] - ticks[0]
    decimals = next(
        places for places in range(7) if abs(round(step, places) - step) < 1e-9 * max(1.0, step) or places == 6
    )
    return f"{value:.{decimals}f}".replace("-", "−")

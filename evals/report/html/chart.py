"""Line charts as plain SVG. This module computes the positions; the template draws them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

WIDTH, HEIGHT = 380, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 38
"""Sizes in SVG units, about one pixel on a phone."""

SMALLEST = 1e-12
"""Minimum span of values on the y axis; a smaller span is drawn as a single value."""

STYLES = 8
"""Number of colours and of markers. Every further round combines a colour with the next marker and dash."""

DASHES = 4


@dataclass(frozen=True)
class Point:
    """A value in the chart's units, with the bounds of its interval, if any."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    partial: bool = False


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    `level`: whether it is a horizontal line of a single value, such as the score of the full cache. `style` counts from
    0.
    """

    label: str
    points: Sequence[Point]
    style: int
    level: bool = False

    @property
    def partial(self) -> bool:
        return any(point.partial for point in self.points)

    @property
    def look(self) -> tuple[int, int, int]:
        """Indices of colour, marker and dash; unique for 64 lines."""
        turn = self.style // STYLES
        return self.style % STYLES, (self.style + turn) % STYLES, (self.style + turn) % DASHES


@dataclass(frozen=True)
class Chart:
    """A line chart.

    `log`: whether the x axis has a log2 scale. `marked`: whether every point has a marker.
    """

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    log: bool = False
    marked: bool = True
    digits: int = 1

    @cached_property
    def xs(self) -> list[float]:
        """The sorted x values of all lines except levels."""
        return sorted({point.x for line in self.lines if not line.level for point in line.points}) or [0.0]

    @cached_property
    def y_ticks(self) -> list[float]:
        """Round values that span all points and 0, usually four to six."""
        points = [point for line in self.lines for point in line.points]
        low = min([0.0, *(point.y if point.low is None else point.low for point in points)])
        high = max([0.0, *(point.y if point.high is None else point.high for point in points)])
        raw = (high - low if high - low > SMALLEST else 1.0) / 4
        power = 10 ** math.floor(math.log10(raw))
        step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
        first, last = math.floor(low / step), math.ceil(high / step - 1e-9)
        return [place * step for place in range(first, max(last, first + 1) + 1)]

    @property
    def intervals(self) -> bool:
        """Whether any interval is drawn."""
        return self.marked and any(
            point.low is not None for line in self.lines if not line.level for point in line.points
        )

    @cached_property
    def x_ticks(self) -> list[float]:
        """At most eight of the x values, evenly spaced."""
        every = math.ceil(len(self.xs) / 8)
        return self.xs[::every]

    def x(self, value: float) -> float:
        scale: Callable[[float], float] = math.log2 if self.log else float
        low, high = scale(self.xs[0]), scale(self.xs[-1])
        share = (scale(value) - low) / (high - low) if high > low else 0.5
        return round(LEFT + 10 + share * (WIDTH - LEFT - RIGHT - 20), 1)

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    def path(self, line: Line) -> str:
        """Return the `d` attribute of a line's path. A level spans the whole chart."""
        if line.level:
            return f"M{LEFT} {self.y(line.points[0].y)}H{WIDTH - RIGHT}"
        return "M" + "L".join(f"{self.x(point.x)} {self.y(point.y)}" for point in line.points)

    def markers(self, line: Line) -> list[Point]:
        """Return the points with a marker: all, or every fifth (offset by the line's style) if `marked` is false."""
        points = [] if line.level else list(line.points)
        return points if self.marked else points[line.style % 5 :: 5]

    def shown(self, value: float) -> str:
        return f"{value:.{self.digits}f}"

    @property
    def sizes(self) -> dict[str, int]:
        return {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM}

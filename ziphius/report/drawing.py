"""Line charts as plain geometry, which the page's template writes out as SVG in the reader's own colours."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean

Point = tuple[float, float]

WIDTH, HEIGHT = 360, 222
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 18, 36
AT_MOST = 160  # points of a line; more become means of neighbours


@dataclass(frozen=True)
class Line:
    """A gauge over steps. `colour` numbers the page's palette."""

    label: str
    points: Sequence[Point]
    colour: int = 0
    dashed: bool = False


@dataclass(frozen=True)
class Dot:
    """A measured value with its interval."""

    label: str
    x: float
    y: float
    interval: Point
    colour: int = 0
    hollow: bool = False


@dataclass
class Picture:
    """A chart with its caption in plain words. `marks` are places on the x axis with a name, such as a stage's end."""

    title: str
    caption: str
    lines: list[Line]
    dots: list[Dot] = field(default_factory=list)
    marks: list[tuple[float, str]] = field(default_factory=list)
    x_label: str = "steps"
    percent: bool = False

    def __post_init__(self) -> None:
        self.lines = [line for line in self.lines if line.points]
        xs, ys = zip(*self._points(), strict=True) if self.has_data else ((0.0,), (0.0,))
        self._x = Scale(min(0.0, *xs), max(xs), LEFT, WIDTH - RIGHT)
        self._y = Scale(min(0.0, *ys), max(ys), HEIGHT - BOTTOM, TOP)
        if self.percent and self._y.high > 0.5:
            self._y = Scale(self._y.low, max(1.0, self._y.high), HEIGHT - BOTTOM, TOP)

    @property
    def has_data(self) -> bool:
        return bool(self.lines or self.dots)

    @property
    def x_ticks(self) -> list[tuple[float, str]]:
        """Place and text of each tick."""
        return [(self._x(value), compact(value)) for value in ticks(self._x.low, self._x.high, 5)]

    @property
    def y_ticks(self) -> list[tuple[float, str]]:
        return [(self._y(value), self.text(value)) for value in ticks(self._y.low, self._y.high, 4)]

    @property
    def placed_marks(self) -> list[tuple[float, str]]:
        return [(self._x(x), name) for x, name in self.marks]

    @property
    def paths(self) -> list[tuple[Line, str]]:
        """Each line with its points as SVG wants them."""
        return [
            (line, " ".join(f"{self._x(x):.1f},{self._y(y):.1f}" for x, y in thinned(line.points)))
            for line in self.lines
        ]

    @property
    def placed_dots(self) -> list[tuple[Dot, float, float, float, float]]:
        """Each dot with x, y, and the heights at which its interval ends."""
        return [
            (dot, self._x(dot.x), self._y(dot.y), self._y(dot.interval[0]), self._y(dot.interval[1]))
            for dot in self.dots
        ]

    @property
    def legend(self) -> list[Line | Dot]:
        """What to name, each label once."""
        items: list[Line | Dot] = [*self.lines, *self.dots]
        return list({item.label: item for item in items}.values())

    @property
    def alt(self) -> str:
        """The chart in words, for those who cannot see it."""
        parts = [f"{line.label} from {self.text(line.points[0][1])} to {self._last(line)}" for line in self.lines]
        parts += [f"{dot.label} {self.text(dot.y)} at {compact(dot.x)}" for dot in self.dots]
        return f"{self.title}. {'; '.join(parts)}."

    def text(self, value: float) -> str:
        return f"{value:.0%}" if self.percent else compact(value)

    def _last(self, line: Line) -> str:
        return f"{self.text(line.points[-1][1])} over {compact(line.points[-1][0])} {self.x_label}"

    def _points(self) -> Iterator[Point]:
        for line in self.lines:
            yield from thinned(line.points)
        for dot in self.dots:
            yield from ((dot.x, bound) for bound in dot.interval)


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high` onto places from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / ((self.high - self.low) or 1.0) * (self.end - self.start)


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most `AT_MOST` points: means of neighbours, which also calms a noisy line."""
    size = -(-len(points) // AT_MOST)
    parts = [points[start : start + size] for start in range(0, len(points), max(size, 1))]
    return [(fmean(x for x, _ in part), fmean(y for _, y in part)) for part in parts]


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round values between `low` and `high`, about `count` of them."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def compact(value: float) -> str:
    """A number in few characters: 0.008, 1.25, 340, 12k, 1.3M."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= (10_000 if unit == "k" else size):
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"

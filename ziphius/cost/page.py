"""One HTML page that needs nothing else: text, tables and pictures by matplotlib. Imports it only when one is drawn."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ziphius.disk.write import write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# As in the report's page; the first colours tell apart for the colour-blind too.
COLOURS = ("#0b63b5", "#c2500a", "#0a7f5b", "#8a3ea8", "#586776", "#b3261e")
INK, SOFT, RULE = "#1b2733", "#586776", "#d7dee5"


@dataclass
class Figure:
    """A picture with its caption and, for those who cannot see it, the same in words (`alt`)."""

    title: str
    caption: str
    alt: str
    draw: Callable[[Axes], None]
    width: float = 7.2
    height: float = 3.4


@dataclass
class Table:
    """Rows of text under headings. The first `text_columns` columns are text, the others numbers (aligned right)."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    text_columns: int = 1
    total: bool = False  # the last row sums the others


@dataclass
class Section:
    """A part of the page: paragraphs, then tables, then pictures. `badge` is a short verdict with its tone."""

    title: str
    paragraphs: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    badge: tuple[str, str] | None = None  # text; good, warn, bad or soft
    quote: str = ""
    small: Sequence[str] = ()  # remarks in small print
    details: Table | None = None  # folded under its caption


def write_page(path: Path, title: str, introduction: Sequence[str], sections: Sequence[Section]) -> None:
    """Write the page to `path` (aside, then renamed)."""
    html = render_page(title, introduction, sections)
    write_text(path, html)


def render_page(title: str, introduction: Sequence[str], sections: Sequence[Section]) -> str:
    """The page's text; all that is given is escaped."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["image"] = image
    template = environment.from_string(files("ziphius.cost").joinpath("page.html").read_text(encoding="utf-8"))
    return template.render(title=title, introduction=introduction, sections=sections)


def image(figure: Figure) -> str:
    """The picture as a data URL of an SVG."""
    from matplotlib.figure import Figure as Canvas

    with _style():
        canvas = Canvas(figsize=(figure.width, figure.height), layout="constrained")
        figure.draw(canvas.subplots())
        drawn = BytesIO()
        canvas.savefig(drawn, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(drawn.getvalue()).decode()


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib as mpl
    from cycler import cycler

    look: Any = {
        "svg.hashsalt": "ziphius",  # the same page, the same bytes
        "font.size": 9,
        "text.parse_math": False,  # a dollar is a dollar
        "text.color": INK,
        "axes.edgecolor": RULE,
        "axes.labelcolor": SOFT,
        "axes.prop_cycle": cycler(color=COLOURS),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "xtick.color": SOFT,
        "ytick.color": SOFT,
        "grid.color": RULE,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
    }
    with mpl.rc_context(look):
        yield

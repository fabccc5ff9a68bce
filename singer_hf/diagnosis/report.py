"""One self-contained HTML file: sections of text, tables and embedded pictures."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined

from .table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Picture:
    """A figure with what it shows.

    Args:
        name: of its file, without ending.
        figure: matplotlib's.
        caption: one or two sentences; also the text for those who cannot see it.
    """

    name: str
    figure: Figure
    caption: str

    @cached_property
    def png(self) -> bytes:
        """The picture at 1.6 times the figure's size, sharp on dense screens, all colours kept; drawn once."""
        buffer = BytesIO()
        self.figure.savefig(buffer, format="png", dpi=160, pil_kwargs={"optimize": True})
        return buffer.getvalue()


@dataclass(frozen=True)
class Section:
    """A part of the report."""

    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = field(default_factory=list)


def render_report(
    title: str, sentence: str, sections: Sequence[Section], *, facts: dict[str, str], verdict: str
) -> str:
    """HTML with all pictures in it; every string is escaped.

    Args:
        title: names the model.
        sentence: the diagnosis in one sentence, shown first.
        sections: in order.
        facts: what it was made with: images, versions, command.
        verdict: "artifacts" or "none", for the colour of the first box.
    """
    environment = Environment(
        loader=PackageLoader("singer_hf.diagnosis", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["base64"] = lambda picture: base64.b64encode(picture.png).decode("ascii")
    template = environment.get_template("report.html")
    return template.render(title=title, sentence=sentence, sections=sections, facts=facts, verdict=verdict)

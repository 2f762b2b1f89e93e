"""Writing a report: index.html that needs nothing beside it, report.md with its images, report.json.

>>> files = write_report(contents, "report")  # doctest: +SKIP
"""

import base64
import json
import os
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from stages.report import words
from stages.report.contents import Contents
from stages.report.document import Chart, Gallery, Section
from stages.report.drawing import BLUE, INK, QUIET
from stages.report.record import as_json
from stages.report.sections import build, glance
from stages.report.tried import SearchContents, sections_of

IMAGES = "report_images"  # the folder beside report.md


@dataclass(frozen=True)
class ReportFiles:
    """Where a report was written."""

    page: Path
    """index.html"""
    markdown: Path
    """report.md; its images lie in the folder report_images beside it"""
    numbers: Path
    """report.json"""


def write_report(contents: Contents, directory: str | Path) -> ReportFiles:
    """Write index.html, report.md and report.json into a directory, which is made; what is there is replaced.

    The same contents give the same bytes. Raises ValueError, before anything is written, for contents that have no
    place in JSON.
    """
    directory = Path(directory)
    sections, overview = build(contents), glance(contents)
    images = _images(sections, overview)
    numbers = json.dumps(as_json(contents, _paths(sections)), indent=1, allow_nan=False) + "\n"
    shown = {
        "contents": contents,
        "sections": sections,
        "overview": overview,
        "sentence": words.robust_accuracy(contents.robust_accuracy),
        "verdict": words.verdict(contents.checks),
        "worst": words.worst_verdict(contents.checks),
        "ball": words.ball(contents.threat),
        "percent": words.percent,
        "interval": words.interval,
    }
    page = _environment(html=True).get_template("index.html").render(shown)
    markdown = _environment(html=False).get_template("report.md").render(shown, folder=_Raw(IMAGES))
    markdown = re.sub(r"\n{3,}", "\n\n", markdown)
    (directory / IMAGES).mkdir(parents=True, exist_ok=True)
    for name, content in images.items():
        _write(directory / IMAGES / name, content)
    for old in (directory / IMAGES).iterdir():
        if old.suffix in (".png", ".svg") and old.name not in images:
            old.unlink()
    files = ReportFiles(directory / "index.html", directory / "report.md", directory / "report.json")
    for path, text in ((files.numbers, numbers), (files.markdown, markdown), (files.page, page)):
        _write(path, text.encode())
    return files


def search_page(contents: SearchContents) -> bytes:
    """The page of a search, which needs nothing beside it. The same contents give the same bytes."""
    shown = {"contents": contents, "sections": sections_of(contents), "ball": words.ball(contents.threat)}
    return _environment(html=True).get_template("search.html").render(shown).encode()


class _Raw(str):
    """Markdown that is meant as it is."""

    __slots__ = ()


def _environment(*, html: bool) -> Environment:
    """Templates whose every value is escaped: for HTML by jinja2, for Markdown by `escape_markdown`."""
    environment = Environment(
        loader=PackageLoader("stages.report"),
        autoescape=html,
        finalize=None if html else _finalized,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["inline"] = _inline
    environment.filters["data"] = lambda png: "data:image/png;base64," + base64.b64encode(png).decode()
    environment.filters["raw"] = _Raw
    environment.filters["alternative"] = _alternative
    return environment


def _finalized(value: object) -> str:
    return value if isinstance(value, _Raw) else escape_markdown(str(value))


def escape_markdown(text: str) -> str:
    r"""Text that Markdown shows as it is, on one line, also inside a table; what needs no escaping stays legible.

    >>> print(escape_markdown("a | b <i>\n*c* [d](e) 42.2 % [34.0, 50.8] snake_case"))
    a \| b &lt;i&gt; \*c\* [d\](e) 42.2 % [34.0, 50.8] snake_case
    """
    plain = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    inside = re.sub(r"[\\`*|~$]|(?<!\w)_|_(?!\w)|\](?=[\[(:])", r"\\\g<0>", plain)
    return re.sub(r"^(?:(\d+)(?=[.)](?:\s|$))|(?=[-+#]))", r"\1\\", inside)


def _alternative(text: str) -> _Raw:
    """Text for an image, between brackets that must not be closed inside."""
    return _Raw(re.sub(r"(?<!\\)[\[\]]", r"\\\g<0>", escape_markdown(text)))


def _inline(chart: Chart) -> Markup:
    """The figure as part of the page: named for screen readers, in colours that suit a light and a dark page."""
    svg = chart.svg.replace(INK, "currentColor").replace(QUIET, "var(--quiet)").replace(BLUE, "var(--curve)")
    label = escape(f"{chart.title}. {chart.says}")
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1))


def _images(sections: list[Section], overview: Chart) -> dict[str, bytes]:
    """All images of the Markdown, by name of the file; figures stand on white, whatever surrounds them."""
    blocks = [block for section in sections for block in section.blocks]
    charts = [overview, *(block for block in blocks if isinstance(block, Chart))]
    tiles = [
        tile for block in blocks if isinstance(block, Gallery) for band in block.bands for s in band for tile in s.tiles
    ]
    drawn = {f"{chart.name}.svg": chart.svg.replace("<svg ", '<svg style="background:#fff" ', 1) for chart in charts}
    return {name: svg.encode() for name, svg in drawn.items()} | {f"{tile.name}.png": tile.png for tile in tiles}


def _paths(sections: list[Section]) -> dict[str, dict[str, list[str]]]:
    """Paths of the pictures for report.json, by gallery and kind, which the names of the tiles hold."""
    paths: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for section in sections:
        for block in section.blocks:
            for strip in (strip for band in getattr(block, "bands", ()) for strip in band):
                for tile in strip.tiles:
                    paths[tile.gallery][tile.of].append(f"{IMAGES}/{tile.name}.png")
    return {gallery: dict(kinds) for gallery, kinds in paths.items()}


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)

"""Building blocks of the HTML reports: one self-contained file, no script, no request to anywhere.

Everything that comes from outside is escaped here and nowhere else.
"""

import base64
from collections.abc import Collection, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from chexradinet.artifacts import writing_file
from chexradinet.errors import EvaluationError

NOT_DEFINED = "n/d"
"""What stands where a number is not defined."""
Cell = str | tuple[str, str]
"""Text of a cell, or its text and a smaller note below it."""

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2733; --soft: #5b6774; --line: #d8dee5; --paper: #fff;
  --band: #f4f6f8; --mark: #e6f0f8; --accent: #0b5c8f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --soft: #a3adb8; --line: #3a444f;
  --paper: #171c22; --band: #1f262e; --mark: #1d3345; --accent: #7cc0ea; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 24px 28px 48px; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", Roboto, Arial, sans-serif; }
header { border-bottom: 3px solid var(--accent); margin-bottom: 20px; padding-bottom: 10px; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 1.15rem; margin: 34px 0 8px; padding-bottom: 4px;
  border-bottom: 1px solid var(--line); }
p { margin: 6px 0; max-width: 78ch; }
.soft, .note { color: var(--soft); } .note { font-size: .82rem; }
.cards { display: flex; flex-wrap: wrap; gap: 12px; margin: 16px 0; padding: 0; list-style: none; }
.cards li { flex: 1 1 124px; background: var(--band); border: 1px solid var(--line);
  border-radius: 6px; padding: 10px 12px; }
.cards .label { display: block; color: var(--soft); font-size: .8rem; }
.cards .value { display: block; font-size: 1.5rem; font-weight: 650; line-height: 1.25;
  font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: 10px 0; font-size: .86rem;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: 4px 0 6px; }
caption strong { display: block; font-size: .95rem; }
caption span, .protocol { display: block; color: var(--soft); font-size: .8rem; max-width: 110ch; }
th, td { padding: 5px 6px; text-align: right; border-bottom: 1px solid var(--line);
  vertical-align: top; }
thead th { border-bottom: 2px solid var(--ink); vertical-align: bottom; font-weight: 600; }
tbody th { font-weight: 500; }
th.text, td.text { text-align: left; white-space: normal; }
th.uid, td.uid { min-width: 13em; overflow-wrap: anywhere; }
td { white-space: nowrap; }
td small, th small { display: block; color: var(--soft); font-size: .78em; font-weight: 400;
  white-space: nowrap; }
tr.marked { background: var(--mark); } tr.marked th, tr.marked td { font-weight: 650; }
figure { margin: 12px 0; }
figure > img { display: block; max-width: 100%; height: auto; border-radius: 4px; background: #fff }
figcaption { color: var(--soft); font-size: .82rem; padding-top: 4px; overflow-wrap: anywhere; }
.panel { display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 16px; }
.panel figure { margin: 0; } .panel img { width: 100%; background: #000; }
.panel b { color: var(--ink); }
ul.plain { padding-left: 20px; margin: 6px 0; max-width: 90ch; }
footer { margin-top: 40px; padding-top: 8px; border-top: 1px solid var(--line); }
@media print { :root { color-scheme: light; --ink: #000; --soft: #444; --line: #bbb; --paper: #fff;
  --band: #f4f4f4; --mark: #eee; --accent: #000; }
  body { max-width: none; padding: 0; font-size: 11px; }
  tr, figure, .cards li { break-inside: avoid; } h2 { break-after: avoid; } }
"""

_MARKED = ' class="marked"'
_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$style</style>
</head>
<body>
<header><h1>$title</h1><p class="soft">$subtitle</p></header>
<main>
$body
</main>
<footer class="note">$footer</footer>
</body>
</html>
""")


def write_page(path: Path, title: str, subtitle: str, sections: Sequence[str], footer: str) -> None:
    """Write one self-contained HTML file, atomically; empty sections are left out.

    Args:
        path: The file.
        title: Plain text.
        subtitle: Plain text.
        sections: HTML made by the functions of this module.
        footer: Plain text.
    """
    text = _PAGE.substitute(
        title=escape(title),
        style=_STYLE,
        subtitle=escape(subtitle),
        body="\n".join(part for part in sections if part),
        footer=escape(footer),
    )
    with writing_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def section(heading: str, *parts: str) -> str:
    """Return a section with its heading; nothing where all parts are empty."""
    inner = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{escape(heading)}</h2>\n{inner}\n</section>" if inner else ""


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph of plain text, of a style class where given."""
    style = f' class="{escape(kind)}"' if kind else ""
    return f"<p{style}>{escape(text)}</p>" if text else ""


def bullets(lines: Sequence[str]) -> str:
    """Return a list of plain lines."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="plain">{items}</ul>' if items else ""


def cards(values: Sequence[tuple[str, str, str]]) -> str:
    """Return a row of figures: label, value, and a note below it."""
    items = "".join(
        f'<li><span class="label">{escape(label)}</span><span class="value">{escape(value)}</span>'
        f'<span class="note">{escape(note)}</span></li>'
        for label, value, note in values
    )
    return f'<ul class="cards">{items}</ul>' if items else ""


def table(
    caption: str,
    protocol: str,
    headers: Sequence[Cell],
    rows: Sequence[Sequence[Cell]],
    marked: Collection[int] = (),
    text_columns: int = 1,
    uid_columns: Collection[int] = (),
) -> str:
    """Return a table with its caption and, below it, on what the numbers were measured.

    Args:
        caption: What the table shows.
        protocol: The protocol line, empty for none.
        headers: One a column, with a note where wanted.
        rows: Cells; the first of a row is its heading.
        marked: Indices of the rows to stress.
        text_columns: Leading columns set flush left; the others are numbers.
        uid_columns: Indices of columns of identifiers, which may be broken anywhere.
    """
    if not rows:
        return ""
    head = "".join(
        f'<th scope="col"{_align(index, text_columns)}>{_content(cell)}</th>'
        for index, cell in enumerate(headers)
    )
    body = "\n".join(
        f"<tr{_MARKED if index in marked else ''}>{_row(cells, text_columns, uid_columns)}</tr>"
        for index, cells in enumerate(rows)
    )
    line = f"<span>{escape(protocol)}</span>" if protocol else ""
    return (
        f'<div class="scroll"><table><caption><strong>{escape(caption)}</strong>{line}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def _row(cells: Sequence[Cell], text_columns: int, uid_columns: Collection[int]) -> str:
    parts = []
    for index, cell in enumerate(cells):
        opening, closing = ('th scope="row"', "th") if index == 0 else ("td", "td")
        style = ' class="text uid"' if index in uid_columns else _align(index, text_columns)
        parts.append(f"<{opening}{style}>{_content(cell)}</{closing}>")
    return "".join(parts)


def _content(cell: Cell) -> str:
    text, note = (cell, "") if isinstance(cell, str) else cell
    return escape(text) + (f"<small>{escape(note)}</small>" if note else "")


def _align(index: int, text_columns: int) -> str:
    return ' class="text"' if index < text_columns else ""


def figure(png: bytes, alternative: str, caption: str = "", protocol: str = "") -> str:
    """Return a figure with its image inline.

    Args:
        png: A PNG file's bytes.
        alternative: What the image shows, for those who do not see it.
        caption: Plain text below it.
        protocol: On what its numbers were measured.
    """
    source = base64.b64encode(png).decode("ascii")
    line = f'<span class="protocol">{escape(protocol)}</span>' if protocol else ""
    below = f"<figcaption>{escape(caption)}{line}</figcaption>" if caption or line else ""
    image = f'<img src="data:image/png;base64,{source}" alt="{escape(alternative)}">'
    return f"<figure>{image}{below}</figure>"


def panel(figures: Sequence[str]) -> str:
    """Return figures side by side, as many as fit."""
    return f'<div class="panel">{"".join(figures)}</div>' if figures else ""


def png_bytes(image: npt.NDArray[np.uint8]) -> bytes:
    """Return the PNG file of a grey (H, W) or RGB (H, W, 3) image.

    Raises:
        EvaluationError: the image is of neither form.
    """
    if image.dtype != np.uint8 or not (image.ndim == 2 or image.shape[2:] == (3,)):
        raise EvaluationError(f"image is {image.dtype} {image.shape}; give 8-bit grey or RGB")
    ordered = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".png", ordered, [cv2.IMWRITE_PNG_COMPRESSION, 6])
    return bytes(encoded.tobytes())


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with fixed decimals, or `n/d` where it is not defined."""
    return NOT_DEFINED if value is None else f"{value:.{digits}f}"


def count(value: Any) -> str:  # noqa: ANN401 - a number of JSON, or nothing
    """Return a count with thousands separators."""
    return NOT_DEFINED if value is None else f"{int(value):,}"

"""The building blocks of the report page: HTML and style, without a script and without anything from the network."""

import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from shared_data.tokenizer.byte_level import symbols_to_bytes, visible

_STYLE = """
:root { --ink: #1f2328; --soft: #656d76; --line: #d8dee4; --page: #ffffff; --tile: #f6f8fa; --accent: #3b82f6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #8d96a0; --line: #30363d; --page: #0d1117; --tile: #161b22; --accent: #60a5fa; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 5rem; max-width: 52rem; background: var(--page); color: var(--ink);
       font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { margin: 0; font-size: 1.9rem; letter-spacing: -0.02em; }
h2 { margin: 3rem 0 0.5rem; padding-top: 1.25rem; border-top: 1px solid var(--line); font-size: 1.3rem; }
h3 { margin: 1.5rem 0 0.25rem; font-size: 1rem; }
p { margin: 0.5rem 0 1rem; }
.soft, figcaption, th { color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: 0.75rem; margin: 1.5rem 0; }
.tile { padding: 0.8rem 1rem; border-radius: 0.6rem; background: var(--tile); }
.tile b { display: block; font-size: 1.45rem; letter-spacing: -0.01em; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 0.85rem; }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; margin: 0.75rem 0 1.25rem; font-size: 0.95rem; }
th { font-weight: 500; text-align: left; white-space: nowrap; }
.facts th:first-child { width: 11rem; }
th, td { padding: 0.4rem 0.75rem 0.4rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.shaded td, .shaded th { padding-right: 0.75rem; }
figure { margin: 1.25rem 0; }
figure svg { width: 100%; height: auto; font-family: inherit; }
.pair { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 0 1.25rem; }
figcaption { font-size: 0.85rem; }
blockquote { margin: 0.5rem 0 1rem; padding: 0.6rem 1rem; border-left: 3px solid var(--accent); background: var(--tile);
             border-radius: 0 0.5rem 0.5rem 0; white-space: pre-wrap; overflow-wrap: anywhere; }
blockquote b { font-weight: 600; color: var(--accent); }
code, pre, .token { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 0.85em; }
pre { padding: 1rem; border-radius: 0.6rem; background: var(--tile); overflow-x: auto; }
.token { display: inline-block; margin: 0.12rem; padding: 0.05rem 0.45rem; border-radius: 0.35rem; background: var(--tile);
         border: 1px solid var(--line); }
summary { cursor: pointer; color: var(--soft); margin: 0.75rem 0; }
.bar { display: inline-block; height: 0.6rem; min-width: 2px; border-radius: 0.3rem; background: var(--accent); }
"""


def page(title: str, body: Iterable[str]) -> str:
    """A whole page."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def escape(text: object) -> str:
    """Text as it may stand in HTML; characters that no page can show are made visible."""
    shown = re.sub(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", str(text))
    return html.escape(shown)


def heading(text: str) -> str:
    """The title of a section."""
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text; `kind` soft is for notes."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def tiles(values: Iterable[tuple[str, str]]) -> str:
    """The few numbers that matter most, as (number, what it is)."""
    inner = "".join(
        f'<div class="tile"><b>{escape(n)}</b><span>{escape(what)}</span></div>' for n, what in values
    )
    return f'<div class="tiles">{inner}</div>'


def table(rows: Iterable[Sequence[str]], head: Sequence[str] = (), numbers: bool = False) -> str:
    """Rows of text, the first column a heading; `numbers` aligns the others to the right."""
    kind, look = (' class="number"', "") if numbers else ("", ' class="facts"')
    top = "".join(f"<th{kind if place else ''}>{escape(text)}</th>" for place, text in enumerate(head))
    lines = [f"<tr>{top}</tr>"] if head else []
    for first, *others in rows:
        lines.append(
            f"<tr><th>{escape(first)}</th>" + "".join(f"<td{kind}>{escape(c)}</td>" for c in others) + "</tr>"
        )
    return f'<div class="scroll"><table{look}>{"".join(lines)}</table></div>'


def shaded_table(rows: Iterable[tuple[str, str, Sequence[float]]], head: Sequence[str]) -> str:
    """Rows of (label, text, shares in [0, 1]); the bluer a share, the larger it is beside the largest of the table."""
    rows, number = list(rows), ' class="number"'
    largest = max((share for _, _, shares in rows for share in shares), default=0) or 1
    top = "".join(f"<th{number if place else ''}>{escape(text)}</th>" for place, text in enumerate(head))
    lines = [f"<tr>{top}</tr>"]
    for label, text, shares in rows:
        opacities = ((share, 0.6 * share / largest) for share in shares)
        cells = "".join(
            f'<td{number} style="background: rgb(59 130 246 / {opacity:.2f})">{share:.0%}</td>'
            for share, opacity in opacities
        )
        lines.append(f"<tr><th>{escape(label)}</th><td{number}>{escape(text)}</td>{cells}</tr>")
    return f'<div class="scroll"><table class="shaded">{"".join(lines)}</table></div>'


def bars(values: Sequence[tuple[str, float, str]]) -> str:
    """Rows of (label, amount, text) with a bar as long as the amount."""
    longest = max((amount for _, amount, _ in values), default=0) or 1
    lines = [
        f'<tr><th>{escape(label)}</th><td class="number">{escape(text)}</td>'
        f'<td style="width: 60%"><span class="bar" style="width: {100 * amount / longest:.1f}%"></span></td></tr>'
        for label, amount, text in values
    ]
    return f"<table>{''.join(lines)}</table>"


def figure(path: Path, caption: str = "") -> str:
    """An SVG file, put into the page itself; nothing where there is no such file."""
    if not path.is_file():
        return ""
    svg = path.read_text(encoding="utf-8")
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # The viewBox remains: the page decides the size.
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    note = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{svg}{note}</figure>"


def side_by_side(figures: Iterable[str]) -> str:
    """Figures in two columns where the page is wide enough."""
    return f'<div class="pair">{"".join(figures)}</div>'


def quote(text: str, beginning: str = "", bold: str = "beginning") -> str:
    """A text as it is, with one of its two parts in bold: `beginning` or `text`."""
    parts = [
        f"<b>{escape(part)}</b>" if part and name == bold else escape(part)
        for name, part in (("beginning", beginning), ("text", text))
    ]
    return f"<blockquote>{''.join(parts)}</blockquote>"


def tokens(texts: Iterable[str]) -> str:
    """Tokens of byte-level BPE, or pairs of them with a space between, side by side; spaces and line ends are made visible."""
    shown = (" ".join(visible(symbols_to_bytes(token)) for token in text.split(" ")) for text in texts)
    return "<p>" + "".join(f'<span class="token">{escape(text)}</span>' for text in shown) + "</p>"


def folded(title: str, inner: str) -> str:
    """A part that opens on a click."""
    return f"<details><summary>{escape(title)}</summary>{inner}</details>"


def preformatted(text: str) -> str:
    """Text in the type of code."""
    return f"<pre>{escape(text)}</pre>"

"""Mathematics in the pages: Markdown leaves every formula as it was written, and it is TeX; pages in Chinese keep to the English ones.

GitHub hands a formula to MathJax after Markdown has read the page, so `_`, `*` and backslashes of a plain `$…$` may be gone by then.
Safe are fences marked ```math, and code spans between dollars: $`…`$.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.test_pages import LINK, PAGES, name, without_code

MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
# A formula, code, a formula.
INLINE = re.compile(r"\$`([^`]+)`\$|`+[^`]+`+|\$([^\s$`](?:[^$`]*[^\s$`])?)\$(?!\d)")


def plain(formula: str) -> str:
    """Without what makes no difference: line ends and indentation."""
    return " ".join(formula.split())


def inline_formulas(text: str) -> Iterator[str]:
    """What stands between dollars, code left out."""
    yield from filter(None, map("".join, INLINE.findall(text)))


def written(text: str) -> list[str]:
    """The formulas of a page as its author wrote them, displays first."""
    displays = [body for language, body in FENCE.findall(text) if language == "math"]
    return [plain(formula) for formula in (*displays, *inline_formulas(FENCE.sub("", text)))]


def displayed(text: str) -> list[str]:
    """The formulas that are left when Markdown has read the page, in the same order."""
    tokens = MARKDOWN.parse(text)
    displays = [token.content for token in tokens if token.type == "fence" and token.info.strip() == "math"]
    inline = [formula for token in tokens for formula in inline_formulas(_text(token.children or []))]
    return [plain(formula) for formula in (*displays, *inline)]


def _text(tokens: list[Token]) -> str:
    """A paragraph without its emphasis and escapes, code in its quotes."""
    breaks = dict.fromkeys(("softbreak", "hardbreak"), "\n")
    return "".join(
        f"`{token.content}`" if token.type == "code_inline" else breaks.get(token.type, token.content)
        for token in tokens
    )


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_markdown_leaves_every_formula_as_it_is(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "$$" not in text, "a display is a fence marked math"
    assert displayed(text) == written(text)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_formula_is_tex(page: Path) -> None:
    for formula in written(page.read_text(encoding="utf-8")):
        try:
            mathml = convert(formula)
        except Exception as error:
            raise AssertionError(formula) from error
        unknown = set(re.findall(r"\\[a-zA-Z]+", mathml)) - {r"\arg"}
        assert not unknown, f"{unknown} in {formula}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.name.endswith(".zh-CN.md")], ids=name)
def test_a_page_in_chinese_has_the_sections_formulas_links_and_commands_of_the_english_one(
    page: Path,
) -> None:
    chinese = page.read_text(encoding="utf-8")
    english = page.with_name(page.name.replace(".zh-CN", "")).read_text(encoding="utf-8")
    languages = {"README.md", page.name, page.name.replace(".zh-CN", "")}

    def parts(text: str) -> tuple[list[str], list[str], list[str], list[str]]:
        links = [link for link in LINK.findall(text) if link not in languages]
        commands = re.findall(r"^(?:pip|uv|git|diff) [^#\n]*[^#\s]", text, re.MULTILINE)
        return (
            re.findall(r"^#+(?= )", without_code(text), re.MULTILINE),
            written(text),
            sorted(links),
            commands,
        )

    assert parts(chinese) == parts(english)


@pytest.mark.parametrize("formula", [r"$a*b*c$", r"$\{x\}$", r"$a \, b$", r"| a | $\|x\|$ |"])
def test_what_markdown_takes_away_is_noticed(formula: str) -> None:
    text = f"| a | b |\n|---|---|\n{formula}" if formula.startswith("|") else formula
    assert displayed(text) != written(text)

"""Small examples with the numbers of the theory pages: the first thing to open, change and run again.

uv run pytest tests/worked
"""

import re
from pathlib import Path

import numpy as np
from jaxtyping import Float64

ROOT = Path(__file__).parents[2]


def table(page: str, title: str) -> Float64[np.ndarray, "rows columns"]:
    """The numbers of a table in a page's worked example: the one whose first heading is `title`. Cells without a number are NaN."""
    text = (
        (ROOT / page).read_text(encoding="utf-8").partition("## A worked example\n")[2].partition("\n## ")[0]
    )
    found = re.findall(rf"^\| {re.escape(title)} \|.*\n\|[-:| ]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert len(found) == 1, f"{page} has {len(found)} tables {title!r} in its worked example"
    rows = [line.strip("| ").split("|")[1:] for line in found[0].splitlines()]
    return np.array([[_number(cell) for cell in row] for row in rows])


def _number(cell: str) -> float:
    try:
        return float(cell.strip(" *").replace("−", "-"))
    except ValueError:
        return np.nan


def agrees(page: str, title: str, computed: object, digits: int = 3) -> None:
    """Fail unless the table has these numbers, rounded to so many digits after the point."""
    wanted, shown = np.array(computed, dtype=float), table(page, title)
    assert shown.shape == wanted.shape, (
        f"{title}: the page has shape {shown.shape}, computed is {wanted.shape}"
    )
    np.testing.assert_allclose(shown, wanted, rtol=0, atol=0.51 * 10**-digits, err_msg=title)

"""Markdown tables, and numbers with their significant digits."""

from collections.abc import Sequence

NOT_RUN = "not run"
NOTHING = "–"
LONGEST = 160


def table(titles: Sequence[str], lines: Sequence[Sequence[str]], *, texts: int) -> str:
    """A Markdown table; the first ``texts`` columns hold text, the others right-aligned numbers."""
    rule = "|" + "---|" * texts + "--:|" * (len(titles) - texts)
    return "\n".join([_row(titles), rule, *map(_row, lines)])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def cell(text: str, longest: int = LONGEST) -> str:
    """``text`` as a table cell: one line of at most ``longest`` characters, with vertical bars escaped."""
    line = " ".join(text.split())
    line = line if len(line) <= longest else line[: longest - 2] + " …"
    return line.replace("|", "\\|")


def code(text: str, longest: int = LONGEST) -> str:
    """``text`` as a table cell in code style; backticks, which would end it, become spaces."""
    return f"`{cell(text.replace('`', ' '), longest)}`"


def three_digits(number: float) -> str:
    """Three significant digits, and every digit before the decimal point."""
    return f"{number:.{max(0, 2 - _exponent(number))}f}"


def ratio(number: float) -> str:
    """Two decimals, fewer for numbers of three and more digits before the decimal point."""
    return f"{number:.{min(2, max(0, 3 - _exponent(number)))}f}"


def milliseconds(ms: float) -> str:
    """At least one decimal, and at least three significant digits."""
    return f"{ms:.{max(1, 2 - _exponent(ms))}f}"


def _exponent(number: float) -> int:
    """The decimal exponent of ``number`` rounded to three significant digits."""
    return int(f"{number:.2e}".partition("e")[2])


def percent(share: float | None) -> str:
    """A fraction in per cent, with one decimal below 10%; a dash for None."""
    if share is None:
        return NOTHING
    return f"{share:.0%}" if share >= 0.0995 else f"{share:.1%}"

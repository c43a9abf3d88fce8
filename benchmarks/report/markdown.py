"""Markdown tables, and numbers with as many digits as mean something."""

from collections.abc import Sequence

NOT_RUN = "not run"
NOTHING = "–"
LONGEST = 160


def table(titles: Sequence[str], lines: Sequence[Sequence[str]], *, texts: int) -> str:
    """Titles, the rule and the lines; the first ``texts`` columns hold text, the others numbers."""
    rule = "|" + "---|" * texts + "--:|" * (len(titles) - texts)
    return "\n".join([_row(titles), rule, *map(_row, lines)])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def cell(text: str, longest: int = LONGEST) -> str:
    """Anything as the text of one cell: on one line, no longer than ``longest``, no bar in it."""
    line = " ".join(text.split())
    line = line if len(line) <= longest else line[: longest - 2] + " …"
    return line.replace("|", "\\|")


def code(text: str, longest: int = LONGEST) -> str:
    """The same as code; a backtick in it would end it."""
    return f"`{cell(text.replace('`', ' '), longest)}`"


def three_digits(number: float) -> str:
    """Three digits that count, and all of those before the point."""
    return f"{number:.{max(0, 2 - _exponent(number))}f}"


def ratio(number: float) -> str:
    """Two digits behind the point, and fewer where there are three before it."""
    return f"{number:.{min(2, max(0, 3 - _exponent(number)))}f}"


def milliseconds(ms: float) -> str:
    """One digit behind the point, and more where there would be fewer than three."""
    return f"{ms:.{max(1, 2 - _exponent(ms))}f}"


def _exponent(number: float) -> int:
    """Of ten, once rounded to three digits."""
    return int(f"{number:.2e}".partition("e")[2])


def percent(share: float | None) -> str:
    """A share in per cent, with a digit behind the point below ten."""
    if share is None:
        return NOTHING
    return f"{share:.0%}" if share >= 0.0995 else f"{share:.1%}"

"""The rows of claims.json for people: as HTML in notebook 08, as Markdown for a code host.

First how many claims have which verdict, and three sentences; then by section a row per claim, a column per size.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from looped_lib.core.html import escape, escape_markdown
from looped_lib.report.claims import CONFIRMED, NOT_CONFIRMED, NOT_REPRODUCED, NOT_RUN, REPRODUCED, UNDECIDED

Row = Mapping[str, Any]
SECTIONS = {
    "4.1": "Section 4.1: where the norm stands",
    "4.2": "Section 4.2: random loop counts, unlooped blocks, the L2 penalty",
    "4.3": "Section 4.3: the penalty on the Jacobian",
    "5": "Section 5: Ouro, fine-tuned",
    "beyond": "Beyond the paper",
}
_GREEN, _RED, _GREY = "#009E73", "#D55E00", "#777777"
_COLOURS = {REPRODUCED: _GREEN, CONFIRMED: _GREEN, NOT_REPRODUCED: _RED, NOT_CONFIRMED: _RED}
_ORDER = (REPRODUCED, NOT_REPRODUCED, CONFIRMED, NOT_CONFIRMED, UNDECIDED, NOT_RUN)
_TABLE = 'style="width: 100%; border-collapse: collapse"'
_CELL = 'style="text-align: left; vertical-align: top; white-space: normal; padding: 6px 10px"'


def headlines(rows: Sequence[Row], size: str) -> list[str]:
    """What was found at a size, in three sentences."""
    run = [row for row in rows if row["size"] == size and row["verdict"] != NOT_RUN]
    theirs, ours = [row for row in run if row["paper"]], [row for row in run if not row["paper"]]
    failed = [row for row in theirs if row["verdict"] == NOT_REPRODUCED]
    refuted = [f"“{row['claim'].rstrip('.')}” ({_number(row)}; {row['number']})" for row in failed]
    asked = sum(bool(row["paper"]) and row["size"] == size for row in rows)
    cheapest = next((row["measured"] for row in run if row["key"] == "cheapest_recipe"), NOT_RUN)
    left = f", {asked - len(theirs)} not run" if asked > len(theirs) else ""
    return [
        f"Of the paper's {asked} claims, {_counted(theirs)} at size {size}{left}.",
        f"Not reproduced: {'; '.join(refuted) or 'none'}.",
        f"Of {len(ours)} questions that the paper does not ask, {_counted(ours)}; "
        f"recipes that hold from 4 to 10,000 loops: {cheapest}.",
    ]


def counts_html(rows: Sequence[Row]) -> str:
    """How many rows have which verdict, by size."""
    return _html(_counts(rows))


def headlines_html(rows: Sequence[Row], size: str) -> str:
    """`headlines` as a list."""
    return f"<ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in headlines(rows, size))}</ul>"


def section_html(rows: Sequence[Row], section: str, links: str = "../../") -> str:
    """The claims of a section; `links` is the way from the page to the folder that holds runs/, in folded lists of the runs."""

    def cell(row: Row) -> str:
        lines = [f'<b style="color: {_COLOURS.get(row["verdict"], _GREY)}">{row["verdict"]}</b>']
        if row["verdict"] != NOT_RUN:
            runs = " ".join(f'<a href="{links}{quote(folder)}/result.json">{escape(folder)}</a><br>' for folder in row["runs"])
            lines += [f"{_number(row)}, {_seeds(row)}", f"<small>{escape(row['measured'])}</small>"]
            lines += [f"<small>made with other than the pins: {escape('; '.join(row['differs']))}</small>"] * bool(row["differs"])
            lines += [f"<details><summary><small>{len(row['runs'])} runs</small></summary><small>{runs}</small></details>"]
        return "<br>".join(lines)

    table = [["claim", "the paper says", *(f"size {escape(size)}" for size in _sizes(rows))]]
    for same in _by_claim(rows, section):
        first = next(iter(same.values()))
        said = f"{escape(first['claim'])}<br><small>number: {escape(first['number'])}</small>"
        table.append([said, escape(first["paper"]), *(cell(same[s]) if s in same else "" for s in _sizes(rows))])
    return _html(table)


def markdown(rows: Sequence[Row], size: str, figures: Mapping[str, Iterable[str]]) -> str:
    """The page that a code host shows; `figures` has the pictures of each section, as paths from the page."""
    lines = [
        "# Results",
        "",
        "Written by `python -m looped_lib report --record` from the records beside this page; nothing is typed in.",
        "",
    ]
    lines += [*_pipes(_counts(rows)), "", *(f"* {escape_markdown(s)}" for s in headlines(rows, size)), ""]
    for section, title in SECTIONS.items():
        lines += [f"## {title}", ""]
        lines += [f"![{title}]({quote(path)})\n" for path in figures.get(section, ())]
        table = [["claim", "the paper says", "verdict", "number [95 % interval]", "measured", "made with other than the pins"]]
        for same in _by_claim(rows, section):
            if (row := same.get(size)) is not None:
                number = f"{_number(row)}, {_seeds(row)} ({row['number']})" if row["verdict"] != NOT_RUN else row["number"]
                cells = [row["claim"], row["paper"], row["verdict"], number, row["measured"], "; ".join(row["differs"])]
                table.append(list(map(escape_markdown, cells)))
        lines += [*_pipes(table), ""]
    return "\n".join(lines)


def _counts(rows: Sequence[Row]) -> list[list[str]]:
    table = [["size", "whose", *_ORDER]]
    for size in _sizes(rows):
        for whose in ("the paper's claims", "beyond the paper"):
            found = Counter(r["verdict"] for r in rows if r["size"] == size and bool(r["paper"]) == (whose != "beyond the paper"))
            table.append([size, whose, *(str(found[verdict] or "") for verdict in _ORDER)])
    return table


def _counted(rows: Sequence[Row]) -> str:
    found = Counter(row["verdict"] for row in rows)
    return ", ".join(f"{found[verdict]} {verdict}" for verdict in _ORDER if found[verdict]) or "none was run"


def _number(row: Row) -> str:
    if row["value"] is None:
        return "no number"
    bounds = row["interval"]
    return f"{row['value']:.3g}" + (f" [{bounds[0]:.3g}, {bounds[1]:.3g}]" if bounds else "")


def _seeds(row: Row) -> str:
    return f"{row['seeds']} seed{'s' * (row['seeds'] != 1)}"


def _sizes(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["size"] for row in rows))


def _by_claim(rows: Sequence[Row], section: str) -> list[dict[str, Row]]:
    """Of each claim its rows by size."""
    claims: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row["section"] == section:
            claims.setdefault(row["key"], {})[row["size"]] = row
    return list(claims.values())


def _html(table: Sequence[Sequence[str]]) -> str:
    """Cells are HTML."""
    head, *body = table
    names = "".join(f"<th {_CELL}>{cell}</th>" for cell in head)
    lines = "".join(f"<tr>{''.join(f'<td {_CELL}>{cell}</td>' for cell in row)}</tr>" for row in body)
    return f"<table {_TABLE}><thead><tr>{names}</tr></thead><tbody>{lines}</tbody></table>"


def _pipes(table: Sequence[Sequence[str]]) -> list[str]:
    head, *body = (f"| {' | '.join(row)} |" for row in table)
    return [head, "|---" * len(table[0]) + "|", *body]

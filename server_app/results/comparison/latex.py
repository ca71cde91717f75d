"""A comparison as LaTeX: `table.tex`, for a document that loads booktabs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from server_app.results.comparison.notes import absent, failing_in, notes
from server_app.results.comparison.sheets import Cell, Sheet, accuracy_sheet, cost_sheet

if TYPE_CHECKING:
    from server_app.results.comparison.comparing import Comparison

_MAX_NUMBERS = 5  # columns of numbers with their deviations that the text of a page is wide enough for

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # at the start of a row it would be an argument of the line break before
    "]": "{]}",
    "–": "--",
    "−": "$-$",
    "±": r"$\pm$",
    "†": r"$^{\dagger}$",
    "…": r"\ldots{}",
    "ε": r"$\varepsilon$",
} | {sign: f"\\{sign}" for sign in "#$%&_{}"}


def latex(comparison: Comparison) -> str:
    r"""A few narrow tables a setting, for `\input{table}` after `\usepackage{booktabs}`; comments explain the marks."""
    lines = [
        *_comments([f"{comparison.name}: input this file into a document with \\usepackage{{booktabs}}."]),
        *_comments(notes(comparison)),
        *_comments(": ".join(filter(None, row)) for row in absent(comparison)),
    ]
    slug = re.sub(r"[^a-z0-9]+", "-", comparison.name.lower()).strip("-")
    for number, setting in enumerate(comparison.settings, start=1):
        suffix = f"-{number}" if len(comparison.settings) > 1 else ""
        for what, sheet in (
            ("accuracy", accuracy_sheet(comparison, setting)),
            ("costs", cost_sheet(comparison, setting)),
        ):
            for place, part in enumerate(_parts(sheet)):
                letter = chr(ord("a") + place)
                lines += _table(part, comparison.name, f"tab:{slug}-{what}{suffix}{letter if place else ''}")
        lines += _comments(failing_in(comparison, setting))
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(_SPECIAL.get(sign, sign) for sign in " ".join(text.split()))


def _parts(sheet: Sheet) -> list[Sheet]:
    """The sheet cut into tables that fit a page: the words in each, then as many groups of numbers as have room."""
    ends = [*sheet.cuts, len(sheet.heads)]
    columns: list[list[int]] = [list(range(sheet.num_words, ends[0]))]
    for begin, end in itertools.pairwise(ends):
        if len(columns[-1]) + end - begin > _MAX_NUMBERS:
            columns.append([])
        columns[-1] += range(begin, end)
    words = list(range(sheet.num_words))
    return [
        replace(
            sheet,
            heads=tuple(sheet.heads[column] for column in (*words, *part)),
            rows=tuple((row[0], _without_states(row[1]), *(row[column] for column in part)) for row in sheet.rows),
        )
        for part in columns
    ]


def _without_states(seeds: Cell) -> Cell:
    """How many seeds there are; what became of the others stands in the comments."""
    return Cell(seeds.text.partition(" (")[0])


def _table(sheet: Sheet, name: str, label: str) -> list[str]:
    alignment = "l" * sheet.num_words + "r" * (len(sheet.heads) - sheet.num_words)
    return [
        "",
        r"\begin{table}",
        r"  \centering\footnotesize\setlength{\tabcolsep}{4pt}",
        rf"  \caption{{{escaped(name)}. {escaped(sheet.title)}.}}",
        rf"  \label{{{label}}}",
        rf"  \begin{{tabular}}{{{alignment}}}",
        r"    \toprule",
        "    " + " & ".join(map(_head, sheet.heads)) + r" \\",
        r"    \midrule",
        *("    " + " & ".join(map(_marked, row)) + r" \\" for row in sheet.rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]


def _head(head: str) -> str:
    """The words of a head one below the other: a head is no wider than its numbers then."""
    words = escaped(head).replace(", ", " ").split(" ")
    return words[0] if len(words) == 1 else r"\shortstack{" + r"\\".join(words) + "}"


def _marked(cell: Cell) -> str:
    value, sign, deviation = cell.text.partition(" ± ")
    text = re.sub(r"^-(?=\d)", "$-$", escaped(value))  # a minus, not a hyphen
    if cell.is_best:
        text = rf"\textbf{{{text}}}"
    elif cell.is_close:
        text = rf"\underline{{{text}}}"
    return rf"{text} {{\tiny$\pm$ {escaped(deviation)}}}" if sign else text


def _comments(sentences: Iterable[str]) -> list[str]:
    return [f"% {' '.join(sentence.split())}" for sentence in sentences]

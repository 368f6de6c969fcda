"""The proof for a reader: a table for the terminal, one sentence, and a page that stands alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trueport.pages import templates_of
from trueport.words import clean, component_view, count_words, listed, model_name, number, program_words, size_words

if TYPE_CHECKING:
    from rich.table import Table

CLAUSES = {
    "shapes": "Other batch sizes and other lengths, 1 included, match the original.",
    "padding": "Padding on the left, on the right and in holes leaves every real position as if its row were alone.",
    "inert": "Changing what lies under the mask changes nothing at real positions.",
    "causal": "Changing the future changes nothing before it.",
    "cache": "Any split into steps and chunks over the cache equals one pass; reordered rows follow their cache.",
    "window": "Lengths past every sliding window, chunk and rope limit match the original.",
    "generate": "Greedy, beam and sampled generation equal the original's, token for token, on ragged prompts.",
    "finite": "Extreme but legal inputs give no NaN and no infinity.",
    "range": "Every activation fits into float16 or bfloat16, or the original clamps it there.",
    "quality": "Likeliest entries and distributions of a quantised artefact stay the float original's, within its gate.",
    "state": "Two runs over a split input equal one run over the whole.",
    "files": "Every file is the one that was exported.",
    "assets": "Config, generation config and tokenizer are the original's.",
}
"""What each clause claims, in the order of the proof."""

CORE = tuple(name for name in CLAUSES if name not in ("range", "quality", "state", "files", "assets"))
"""The clauses that every transformer is asked."""

WORDS = {"pass": "pass", "fail": "fail", "not applicable": "n/a"}
COLOURS = {"pass": "green", "fail": "bold red", "not applicable": "dim"}
VERDICTS = {"proven": "Proven", "failed": "Not proven", "unproven": "Unproven"}

HEAD, TAIL, ROWS = 16, 7, 8
"""How much of a long input is shown: columns from its start and its end, and rows."""

BAR = 160.0
DECADES = 4.0
"""A bar's width in pixels, and the decades on each side of the budget."""


# Judging what the proof recorded


def ratio(case: Mapping[str, Any]) -> float:
    """The error in budgets; infinite where there is no finite error, or one over a budget of 0."""
    error, budget = case.get("error"), case.get("budget") or 0.0
    if error is None or not math.isfinite(error):
        return math.inf
    return error / budget if budget else (0.0 if error == 0 else math.inf)


def case_failed(clause: Mapping[str, Any], case: Mapping[str, Any]) -> bool:
    """Whether this case is one of those that failed its clause."""
    return clause["status"] == "fail" and not ratio(case) <= 1


def _worst(clauses: Iterable[Mapping[str, Any]]) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
    """The clause and case with the largest ratio, the largest error among equals; the first of those."""
    pairs = [(clause, case) for clause in clauses for case in clause["cases"]]
    return max(pairs, key=lambda pair: (ratio(pair[1]), pair[1].get("error") or 0.0), default=None)


def _named(clause: Mapping[str, Any], proof: Mapping[str, Any]) -> str:
    """The clause's name, and its component where the proof has several."""
    return f"{clause['clause']} ({_part(clause, proof)})" if _several(proof) else str(clause["clause"])


def _part(clause: Mapping[str, Any], proof: Mapping[str, Any]) -> str:
    """The clause's component; its target alone where all targets' components are the same."""
    target, colon, rest = str(clause["component"]).partition(": ")
    same = len({str(c["component"]).partition(": ")[2] for c in proof["clauses"]} - {""}) == 1
    return target if colon and rest and same else str(clause["component"])


def _several(proof: Mapping[str, Any]) -> bool:
    return len({clause["component"] for clause in proof["clauses"] if clause["clause"] not in ("files", "assets")}) > 1


def _ratio_words(clause: Mapping[str, Any], case: Mapping[str, Any]) -> str:
    value, error = ratio(case), case.get("error")
    if error is None:
        return "no finite error" if case_failed(clause, case) else "not measured"
    if value == 0:
        return "exact"
    if math.isinf(value):
        return _tokens(error) if clause["clause"] == "generate" else f"{number(error)} over 0"
    return f"{number(value)} of budget" if value <= 1 else f"{number(value)} × budget"


def _tokens(error: float) -> str:
    return "1 token differs" if error == 1 else f"{number(error)} tokens differ"


def _shortfall(clause: Mapping[str, Any], case: Mapping[str, Any]) -> str:
    """How a case failed, in words."""
    error, budget = case.get("error"), case.get("budget") or 0.0
    if error is None:
        return str(case.get("note") or "the error is not a finite number").rstrip(".")
    if clause["clause"] == "generate" and not budget:
        return _tokens(error)
    # An error just over its budget would read as equal to it at two digits.
    digits = next((d for d in range(2, 9) if number(error, d) != number(budget, d)), 9)
    note = f" ({case['note']})" if case.get("note") else ""
    return f"error {number(error, digits)} against a budget of {number(budget, digits)}{note}"


def headline(proof: Mapping[str, Any]) -> str:
    """The verdict in one sentence, with the worst case."""
    proof = clean(proof)
    word = VERDICTS[proof["verdict"]]
    failing = [clause for clause in proof["clauses"] if clause["status"] == "fail"]
    passing = [clause for clause in proof["clauses"] if clause["status"] == "pass"]
    if failing:
        return f"{word}: {_failure(failing, proof)}."
    if not proof["clauses"]:
        return f"{word}: no clause was run."
    if not passing:
        return f"{word}: no clause applied."
    if proof.get("reference") is None:
        word += " without the original"
    cases = sum(len(clause["cases"]) for clause in passing)
    sentence = f"{word}: {count_words(len({c['clause'] for c in passing}), 'clause')}, {count_words(cases, 'case')}"
    worst = _worst(passing)
    if worst is None:
        return f"{sentence}."
    clause, case = worst
    words = "every case exact" if ratio(case) == 0 else f"worst error {number(ratio(case))} of its budget"
    where = "" if ratio(case) == 0 else f" ({_named(clause, proof)}, {case['case']})"
    return f"{sentence}, {words}{where}."


def _failure(failing: Sequence[Mapping[str, Any]], proof: Mapping[str, Any]) -> str:
    names = list(dict.fromkeys(_named(clause, proof) for clause in failing))
    lead = f"{names[0]} fails: " if len(names) == 1 else f"{listed(names)} fail; the worst is "
    worst = _worst(failing)
    if worst is None:
        clause, detail = failing[0], str(failing[0].get("reason") or "no case could be run").rstrip(".")
    else:
        clause, case = worst
        detail = f"{case['case']}: {_shortfall(clause, case)}"
    mends = dict.fromkeys(str(entry["mend"]).rstrip(".") for entry in failing if entry.get("mend"))
    return ". ".join([lead + (detail if len(names) == 1 else f"{_named(clause, proof)}, {detail}"), *mends])


def table(proof: Mapping[str, Any]) -> Table:
    """One line for each clause, at most 80 columns wide; what failed or did not apply may take more lines."""
    from rich.table import Table
    from rich.text import Text

    proof = clean(proof)
    several = _several(proof)
    result = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, width=80, header_style="dim")
    result.add_column("clause", no_wrap=True, max_width=12)
    if several:
        result.add_column("part", no_wrap=True, max_width=10)
    result.add_column("status", no_wrap=True)
    result.add_column("cases", justify="right", no_wrap=True)
    result.add_column("worst error", no_wrap=True, max_width=16)
    result.add_column("where, or why", ratio=1)
    for clause in proof["clauses"]:
        status, worst = clause["status"], _worst([clause])
        words = str(clause.get("reason") or "")
        if worst is not None and status == "fail":
            told = [f"{worst[1]['case']}: {_shortfall(*worst)}", str(clause.get("mend") or "")]
            words = ". ".join(filter(None, told))
        elif worst is not None and status == "pass":
            words = worst[1]["case"] if ratio(worst[1]) else words or "every case"
        # A pass needs no more than its one line; a failure is read to its end.
        passed, dimmed = status == "pass", COLOURS[status] if status == "not applicable" else ""
        cells = [
            Text(clause["clause"], style=COLOURS[status] if status == "fail" else ""),
            *([Text(_part(clause, proof))] if several else []),
            Text(WORDS[status], style=COLOURS[status]),
            Text(str(len(clause["cases"])) if clause["cases"] else "–"),
            Text("–" if worst is None else _ratio_words(*worst)),
            Text(words, style=dimmed, no_wrap=passed, overflow="ellipsis" if passed else "fold"),
        ]
        result.add_row(*cells)
    return result


# The page


def html(proof: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    """The content of report.html: no script, nothing loaded from anywhere, the same bytes for the same proof."""
    proof, manifest = clean(proof), clean(manifest)
    environment = templates_of(__file__, escaped=True)
    source = manifest.get("source", {})
    return environment.get_template("report.html").render(
        name=model_name(manifest),
        verdict=proof["verdict"],
        verdict_word=VERDICTS[proof["verdict"]],
        sentence=headline(proof),
        facts=_facts(proof, source, manifest),
        tolerance=_tolerance(proof),
        clauses=[_clause_view(index, clause, proof) for index, clause in enumerate(proof["clauses"])],
        gaps=gaps(proof),
        components=[component_view(name, entry) for name, entry in manifest.get("components", {}).items()],
        files=[
            (path, size_words(entry["size"]), entry.get("sha256", "not hashed"))
            for path, entry in manifest.get("files", {}).items()
        ],
        versions=list(manifest.get("versions", {}).items()),
        patches=[_patch(entry) for entry in manifest.get("patches", [])],
        compared=proof.get("reference") is not None,
        programs=program_words(manifest),
        bar_width=int(BAR),
    )


def _facts(proof: Mapping[str, Any], source: Mapping[str, Any], manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Short facts under the verdict, as pairs of term and value."""
    reference = proof.get("reference")
    original = "none given"
    if reference is not None:
        parts = [reference.get("class"), reference.get("dtype"), reference.get("attention")]
        original = ", ".join(str(part) for part in parts if part)
    entries = manifest.get("components", {})
    facts = [
        ("Model class", source.get("class")),
        ("Task", source.get("task") or manifest.get("task")),
        ("Weights", source.get("dtype") or manifest.get("dtype")),
        ("Judged against", original if proof["clauses"] else None),
        ("Components", ", ".join(f"{name} ({entry.get('target', 'onnx')})" for name, entry in entries.items())),
        ("Seed of the inputs", proof.get("seed")),
    ]
    return [(term, str(value)) for term, value in facts if value not in (None, "")]


def _tolerance(proof: Mapping[str, Any]) -> dict[str, str] | None:
    tolerance = proof.get("tolerance")
    if not tolerance:
        return None
    floor, multiple = tolerance.get("noise_floor"), tolerance.get("multiple")
    return {
        "words": str(tolerance.get("words", "")).rstrip("."),
        "floor": "" if floor is None else number(floor),
        "multiple": "" if multiple is None else f"{multiple:g}",
    }


def _clause_view(index: int, clause: Mapping[str, Any], proof: Mapping[str, Any]) -> dict[str, Any]:
    worst = _worst([clause])
    return {
        "anchor": f"clause-{index}",
        "name": clause["clause"],
        "component": _part(clause, proof) if _several(proof) else "",
        "claim": CLAUSES.get(clause["clause"], ""),
        "status": clause["status"],
        "kind": WORDS[clause["status"]].replace("/", ""),
        "reason": ". ".join(filter(None, (clause.get("reason"), clause.get("mend")))),
        "count": count_words(len(clause["cases"]), "case"),
        "worst": None if worst is None else _case_view(*worst),
        "where": "" if worst is None else worst[1]["case"] if ratio(worst[1]) else "every case",
        "cases": [
            _case_view(clause, case) | {"open": worst is not None and case is worst[1] and case_failed(clause, case)}
            for case in clause["cases"]
        ],
    }


def _case_view(clause: Mapping[str, Any], case: Mapping[str, Any]) -> dict[str, Any]:
    error, failed = case.get("error"), case_failed(clause, case)
    status = "fail" if failed else "n/a" if clause["status"] == "not applicable" else "pass"
    return {
        "name": case["case"],
        "note": case.get("note") or "",
        "error": "–" if error is None else number(error),
        "budget": number(case.get("budget") or 0.0),
        "status": status,
        "kind": status.replace("/", ""),
        "words": _ratio_words(clause, case),
        "bar": _bar(ratio(case)) if error is not None or failed else 0.0,
        "grids": _grids(case.get("worst_input")),
    }


def _bar(value: float) -> float:
    """The bar's length in pixels on a log scale whose middle is the budget."""
    if value <= 0:
        return 0.0
    decade = DECADES if math.isinf(value) else max(-DECADES, min(DECADES, math.log10(value)))
    return round(max(2.0, (decade + DECADES) / (2 * DECADES) * BAR), 1)


def _grids(worst: Any) -> list[dict[str, Any]]:
    """The worst input array by array; padding is marked where a mask of the same shape says so."""
    if not worst:
        return []
    arrays = worst if isinstance(worst, Mapping) else {"input": worst}
    masks = [value for name, value in arrays.items() if str(name).endswith("attention_mask")]
    return [_grid(str(name), value, masks) for name, value in arrays.items()]


def _grid(name: str, value: Any, masks: Sequence[Any]) -> dict[str, Any]:
    rows = [value] if isinstance(value, list) and not any(isinstance(entry, list) for entry in value) else value
    if not _is_matrix(rows):
        text = str(value)
        return {"name": name, "text": text if len(text) <= 400 else f"{text[:400]} …", "rows": [], "columns": []}
    width = max((len(row) for row in rows), default=0)
    columns: list[int | None] = list(range(width))
    if width > HEAD + TAIL + 1:
        columns = [*range(HEAD), None, *range(width - TAIL, width)]
    is_mask = name.endswith("mask")
    mask = next((m for m in masks if not is_mask and _is_matrix(m) and [*map(len, m)] == [*map(len, rows)]), None)
    lines = [
        [_cell(row, column, is_mask, None if mask is None else mask[index]) for column in columns]
        for index, row in enumerate(rows[:ROWS])
    ]
    hidden = [f"{count_words(len(rows) - ROWS, 'more row')}"] if len(rows) > ROWS else []
    if None in columns:
        hidden.append(f"columns {HEAD} to {width - TAIL - 1} are left out")
    shape = " × ".join(str(size) for size in (len(rows), width))
    return {"name": name, "shape": shape, "text": "", "rows": lines, "columns": columns, "hidden": "; ".join(hidden)}


def _is_matrix(rows: Any) -> bool:
    return (
        isinstance(rows, list)
        and bool(rows)
        and all(isinstance(row, list) and not any(isinstance(entry, list | Mapping) for entry in row) for row in rows)
    )


def _cell(row: Sequence[Any], column: int | None, is_mask: bool, mask: Sequence[Any] | None) -> tuple[str, str]:
    """A cell's text and its class: ``p`` under the mask, ``m`` for a mask's 1."""
    if column is None:
        return "…", "e"
    if column >= len(row):
        return "", ""
    value = row[column]
    text = number(value, 3) if isinstance(value, float) else str(int(value) if isinstance(value, bool) else value)
    kind = ("m" if value else "p") if is_mask else "p" if mask is not None and not mask[column] else ""
    return text if len(text) <= 24 else f"{text[:24]}…", kind


def gaps(proof: Mapping[str, Any]) -> list[str]:
    """What the proof does not show, one sentence each."""
    sentences = []
    entries = proof["clauses"]
    for clause in entries:
        if clause["status"] == "not applicable":
            reason = str(clause.get("reason") or "it does not apply to this model").rstrip(".")
            sentences.append(f"{_named(clause, proof)} was not asked: {reason}.")
        elif clause["status"] == "fail":
            sentences.append(f"{_named(clause, proof)} was asked and does not hold.")
    sentences += [f"{note}." for note in proof.get("notes") or []]
    missing = [name for name in CORE if name not in {clause["clause"] for clause in entries}]
    if missing:
        sentences.append(f"Not part of this proof: {listed(missing)}.")
    if not entries:
        return [*sentences, "Nothing about this artefact was compared with anything."]
    if proof.get("reference") is None:
        sentences.append(
            "No original was given. The clauses judge the artefact against itself: that it is consistent was shown, "
            "that it computes what the original computes was not."
        )
    sentences.append(
        f"The inputs are cases drawn from seed {proof.get('seed')}, and not all inputs there are. "
        "Other versions of the runtime, other processors and other execution providers round differently; "
        "“trueport verify” repeats the proof on the machine at hand."
    )
    return sentences


def _patch(entry: Any) -> tuple[str, str]:
    """A patch's path, and why it was needed."""
    if not isinstance(entry, Mapping):
        return str(entry), ""
    why = next((str(entry[key]) for key in ("why", "symptom", "reason") if entry.get(key)), "")
    return str(entry.get("path") or entry.get("name") or "patch"), why

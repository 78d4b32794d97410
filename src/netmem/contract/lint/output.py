"""Reports as JSON, SARIF, Markdown and one HTML page.

JSON: {"tool", "version", "tree", "problems": [..], "drivers": [{"driver", "path", "requirements": {"R1":
{"verdict":
pass | partial | fail | n/a, "why", "confidence": high | low, "needs", "evidence": [{"file", "line",
"message",
"cure"}]}}, "facts", "suppressed", "unused_suppressions", "problems",
"advice": {"A1": [as evidence]}}]}.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from netmem.base.schema import document
from netmem.base.text import printable
from netmem.contract.lint.check import Report, to_json
from netmem.contract.lint.model import FAIL, NA, PARTIAL, PASS
from netmem.contract.lint.rules import RULES
from netmem.contract.lint.rules.advice import ADVICE
from netmem.contract.lint.rules.advice import BY_ID as ADVISED
from netmem.contract.lint.tree import load
from netmem.contract.requirements import BY_ID

SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
LEVELS = {FAIL: "error", PARTIAL: "warning"}
ADVISES = "note"
IN_GITHUB = {ADVISES: "notice"}
IN_CHECKPATCH = {ADVISES: "CHECK"}
CONTEXT = 4  # source lines around evidence on the HTML page
SIGNS = {PASS: "pass", PARTIAL: "partial", FAIL: "**fail**", NA: "n/a"}


def body(reports: list[Report], problems: list[str], tree: str, version: str) -> dict[str, Any]:
    """What all formats are made of."""
    drivers = []
    for report in reports:
        one = to_json(report)
        del one["looked_at"]
        drivers.append(one)
    made = {
        "tool": "netmem check", "version": version, "tree": tree, "problems": problems, "drivers": drivers,
    }  # fmt: skip
    return document("sources", made)


def add_before(made: dict[str, Any], before: list[Report], tree: str) -> None:
    """What the verdicts were in another report: of an older kernel, say."""
    old = {report.driver: report.requirements for report in before}
    made["before"] = tree
    for driver in made["drivers"]:
        was = old.get(driver["driver"])
        for id_, verdict in driver["requirements"].items():
            verdict["before"] = was[id_].verdict if was is not None and id_ in was else ""


def moved(driver: dict[str, Any]) -> list[str]:
    """What is another verdict than before."""
    return [
        f"{id_} {v['before']} → {v['verdict']}"
        for id_, v in driver["requirements"].items() if v.get("before") and v["before"] != v["verdict"]
    ]  # fmt: skip


def as_json(made: dict[str, Any]) -> str:
    """The documented form."""
    return json.dumps(made, indent=1)


def as_sarif(made: dict[str, Any]) -> str:
    """SARIF 2.1.0, as code-scanning pages load it: a result for each place that fails or is partial."""
    rules = [
        {
            "id": rule.id,
            "name": "".join(word.capitalize() for word in BY_ID[rule.id].title.replace("-", " ").split()),
            "shortDescription": {"text": BY_ID[rule.id].title},
            "fullDescription": {"text": BY_ID[rule.id].text},
            "help": {"text": rule.convention},
        }
        for rule in RULES
    ] + [
        {
            "id": one.id,
            "name": "".join(word.capitalize() for word in one.title.replace("-", " ").split()),
            "shortDescription": {"text": one.title},
            "fullDescription": {"text": one.text},
            "help": {"text": one.text},
        }
        for one in ADVICE
    ]
    results = []
    for level, driver, id_, verdict, place in _places(made):
        results.append({
            "ruleId": id_,
            "ruleIndex": [rule["id"] for rule in rules].index(id_),
            "level": level,
            "message": {"text": _said(verdict, place)},
            "locations": [{"physicalLocation": {
                "artifactLocation": _artifact(place["file"]),
                "region": {"startLine": max(1, place["line"])},
            }}],
            "partialFingerprints": {"netmem/v1": f"{id_}:{place['file']}:{place['message']}"},
            "properties": {"driver": driver, "confidence": verdict["confidence"]},
        })  # fmt: skip
    tool = {"driver": {"name": made["tool"], "version": made["version"], "rules": rules}}
    run = {"tool": tool, "results": results, "columnKind": "utf16CodeUnits"}
    return json.dumps({"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1)


def as_github(made: dict[str, Any]) -> str:
    """A workflow command for each place, which a GitHub Action's log turns into an annotation."""
    lines = []
    for level, driver, id_, verdict, place in _places(made):
        where = f"file={_escaped(place['file'], ':,')},line={max(1, place['line'])}"
        title = _escaped(f"{id_} {title_of(id_)}: {driver}", ":,")
        word = IN_GITHUB.get(level, level)
        lines.append(f"::{word} {where},title={title}::{_escaped(_said(verdict, place), '')}")
    return "\n".join(lines)


def title_of(id_: str) -> str:
    """What a requirement, or a piece of advice, is called."""
    return ADVISED[id_].title if id_ in ADVISED else BY_ID[id_].title


def _escaped(text: str, more: str) -> str:
    for one in ("%", "\r", "\n", *more):
        text = text.replace(one, f"%{ord(one):02X}")
    return text


def as_checkpatch(made: dict[str, Any]) -> str:
    """As checkpatch.pl writes, with its totals."""
    lines = []
    counts = {"ERROR": 0, "WARNING": 0, "CHECK": 0}
    for number, (level, _driver, id_, verdict, place) in enumerate(_places(made), 1):
        word = IN_CHECKPATCH.get(level, level.upper())
        counts[word] += 1
        lines += [
            f"{word}:NETMEM_{id_}: {_said(verdict, place)}",
            f"#{number}: FILE: {place['file']}:{max(1, place['line'])}:",
            "",
        ]
    counted = ", ".join(f"{count} {word.lower()}s" for word, count in counts.items())
    lines.append(f"total: {counted}, {len(made['drivers'])} drivers checked")
    return "\n".join(lines)


def _places(made: dict[str, Any]) -> Iterator[tuple[str, str, str, dict[str, Any], dict[str, Any]]]:
    """(level, driver, rule, verdict, place) of all that fails or is partial."""
    for driver in made["drivers"]:
        for id_, verdict in driver["requirements"].items():
            if verdict["verdict"] in LEVELS:
                for place in verdict["evidence"]:
                    yield LEVELS[verdict["verdict"]], driver["driver"], id_, verdict, place
        for id_, places in driver.get("advice", {}).items():
            for place in places:
                yield ADVISES, driver["driver"], id_, {"why": "", "confidence": "high"}, place


def _said(verdict: dict[str, Any], place: dict[str, Any]) -> str:
    said = [verdict["why"]] if verdict["why"] != place["message"] else []
    return ". ".join(x for x in (*said, place["message"], place["cure"]) if x)


def _artifact(file: str) -> dict[str, str]:
    if file.startswith("/"):
        return {"uri": "file://" + quote(file)}
    return {"uri": quote(file), "uriBaseId": "%SRCROOT%"}


def as_markdown(made: dict[str, Any]) -> str:
    """A scoreboard: drivers by requirements, those with a page pool first."""
    judged, others = _split(made["drivers"])
    ids = [rule.id for rule in RULES if not made["drivers"] or rule.id in made["drivers"][0]["requirements"]]
    lines = ["# Scoreboard", "", f"{_markdown(made['tree'])}; `{made['tool']}` {made['version']}.", ""]
    lines += [f"- **{id_}** {BY_ID[id_].title}" for id_ in ids]
    counts = [sum(d["requirements"][id_]["verdict"] == PASS for d in judged) for id_ in ids]
    lines += ["", "| driver | " + " | ".join(ids) + " |", "| --- |" + " --- |" * len(ids)]
    for driver in judged:
        cells = [SIGNS[driver["requirements"][id_]["verdict"]] + ("?" if
        driver["requirements"][id_]["confidence"] == "low" else "")
                 for id_ in ids]  # fmt: skip
        lines.append(f"| {_markdown(driver['driver'])} | " + " | ".join(cells) + " |")
    lines.append("| pass, of " + f"{len(judged)} | " + " | ".join(map(str, counts)) + " |")
    lines += ["", "A question mark: low confidence; `netmem check DRIVER` says what it would take to know."]
    if "before" in made:
        lines += ["", f"What moved since {_markdown(made['before'])}:", ""]
        for driver in judged:
            said = moved(driver)
            if all(not v.get("before") for v in driver["requirements"].values()):
                said = ["was not there"]
            lines += [f"- {_markdown(driver['driver'])}: {', '.join(said)}"] if said else []
    if others:
        lines += [
            "",
            f"{len(others)} more network drivers make no page pool (R1 fails, the rest is not judged).",
        ]
    return "\n".join(lines) + "\n"


def _markdown(text: str) -> str:
    """A name of a tree as text in Markdown, whatever it holds."""
    return (
        re.sub(r"([\\`*_{}\[\]()#+!|~>-])", r"\\\1", html.escape(printable(text), quote=False))
        .replace("\\_", "_")
        .replace("\\-", "-")
    )


def _pools(driver: dict[str, Any]) -> bool:
    """True when it makes a page pool, or nobody asked."""
    return driver["requirements"].get("R1", {}).get("verdict") != FAIL


def _split(drivers: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    judged = [d for d in drivers if _pools(d)]
    return judged, [d for d in drivers if not _pools(d)]


def as_html(made: dict[str, Any], root: Path) -> str:
    """One page that needs nothing else: scoreboard, filter, and evidence with its source lines on click."""
    sources: dict[str, list[str]] = {}
    for driver in made["drivers"]:
        for verdict in driver["requirements"].values():
            for place in verdict["evidence"]:
                place["source"] = _lines(root, place["file"], place["line"], sources)
    page = resources.files("netmem.contract.lint").joinpath("scoreboard.html").read_text()
    text = json.dumps({**made, "titles": {r.id: BY_ID[r.id].title for r in RULES},
                       "conventions": {r.id: r.convention for r in RULES}})  # fmt: skip
    # Nothing in the data can end its script, or be taken for a placeholder.
    data = text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    parts = {"@TREE@": html.escape(printable(made["tree"])), "@DATA@": data}
    return re.sub("@TREE@|@DATA@", lambda match: parts[match[0]], page)


def _lines(root: Path, file: str, line: int, sources: dict[str, list[str]]) -> list[tuple[int, str]]:
    if file not in sources:
        path = root / file
        text = load(str(path))  # one of those that were judged
        sources[file] = (text or b"").decode("utf-8", "replace").splitlines()
    first = max(1, line - CONTEXT)
    return [(n, sources[file][n - 1]) for n in range(first, min(line + CONTEXT, len(sources[file])) + 1)]

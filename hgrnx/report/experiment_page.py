"""A report as one page that holds all it needs, and as Markdown."""

from __future__ import annotations

from importlib import resources

from hgrnx.report.experiment_parts import Report, Table
from hgrnx.report.svg import swatch


def as_html(report: Report) -> str:
    """One page that holds its styles and drawings and fetches nothing: light and dark, wide and narrow, printed."""
    from jinja2 import Environment
    from markupsafe import Markup

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["drawing"] = Markup
    text = (resources.files("hgrnx") / "report" / "experiment.html").read_text(encoding="utf-8")
    return environment.from_string(text).render(report=report, swatch=lambda colour: Markup(swatch(colour)))


def as_markdown(report: Report) -> str:
    """Tables, notes and commands; the drawings are on the page."""
    lines = [f"# {report.title}: {report.question}", "", f"`{report.name}`: {report.status}.", ""]
    if report.missing:
        lines += ["Not in it yet:", "", *(f"- {item}" for item in report.missing), ""]
    for part in report.parts:
        if not (part.tables or part.text or part.code):
            continue
        lines += [f"## {part.title}", "", *(item for text in part.text for item in (text, ""))]
        for table in part.tables:
            lines += [*_markdown_table(table), ""]
        if part.code:
            lines += ["```", *part.code, "```", ""]
    return "\n".join(lines)


def _markdown_table(table: Table) -> list[str]:
    rule = "|" + "|".join("---" if index < table.names else "---:" for index in range(len(table.header))) + "|"
    return [_piped(table.header), rule, *map(_piped, table.rows), *(["", table.note] if table.note else [])]


def _piped(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

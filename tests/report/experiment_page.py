"""A page taken apart, for the tests of what is on it."""

from __future__ import annotations

import re
from html.parser import HTMLParser


class Page(HTMLParser):
    """A page's table rows, the tags that were not closed, and what it would fetch."""

    VOID = ("meta", "link", "br", "hr", "img", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.unclosed: list[str] = []
        self.rows: list[list[str]] = []
        self.charts = 0
        self.fetched = re.findall(r"(?:https?:)?//[\w.]+|url\(|@import|\bsrc=|\bhref=|<script|<link", text)
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.unclosed.append(tag)
        self.charts += tag == "svg" and ("class", "chart") in attrs
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.unclosed and self.unclosed.pop() == tag, f"</{tag}> closes nothing that is open"

    def handle_data(self, data: str) -> None:
        if self.unclosed and self.unclosed[-1] in ("td", "th"):
            self.rows[-1][-1] += data

"""The ledger of words: which source gave how many, to whom."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def ledger(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The words of a manifest as rows for display: one per source and split, then one per split.

    Keys: ``source`` (``"total"`` in the last rows), ``split``, ``documents``, ``words``, ``bytes``, ``tokens``,
    ``share`` (of the split's words) and ``available_words`` (in the source, before the budget cut it).
    """
    rows, splits = [], manifest["splits"]
    for source in [*manifest["sources"], _total(manifest)]:
        for split, totals in splits.items():
            if source["available_words"][split]:
                counts = source[split]
                rows.append(
                    {
                        "source": source["name"],
                        "split": split,
                        **counts,
                        "share": counts["words"] / totals["words"],
                        "available_words": source["available_words"][split],
                    }
                )
    return rows


def print_ledger(manifest: dict[str, Any], console: Console) -> None:
    """Print the ledger as a table, with what the tokenizer saw, and what was left out or changed."""
    from rich.table import Table

    table = Table(title="Words by white space")
    table.add_column("source")
    table.add_column("split")
    for title in ("documents", "words", "share", "available", "bytes", "tokens"):
        table.add_column(title, justify="right")
    for row in ledger(manifest):
        table.add_row(
            row["source"],
            row["split"],
            f"{row['documents']:,}",
            f"{row['words']:,}",
            f"{row['share']:.1%}",
            f"{row['available_words']:,}",
            f"{row['bytes']:,}",
            f"{row['tokens']:,}",
            end_section=row is not None and row["source"] == "total" and row["split"] == "dev",
        )
    console.print(table)
    if manifest["source"] is not None:
        console.print(f"from {manifest['source']}", highlight=False)
    _print_tokenizer(manifest, console)
    for key, what in (
        ("blank_lines", "blank lines left out"),
        ("crlf_lines", "carriage returns at line ends dropped"),
        ("byte_order_mark", "byte order marks dropped"),
        ("nul_characters", "NUL characters kept"),
    ):
        count = sum(source[key] for source in manifest.get("inputs", manifest["sources"]))
        if count:
            console.print(f"{what}: {count:,}")
    if "domains" in manifest:
        _print_domains(manifest, console)
    _print_cleaning(manifest["cleaning"], console)


def _print_tokenizer(manifest: dict[str, Any], console: Console) -> None:
    tokenizer = manifest["tokenizer"]
    if tokenizer["given"] is not None:
        words = sum(text["words"] for text in tokenizer["texts"] or ())
        read = f"trained on {words:,} words" if words else "what it was trained on is not known"
        entries = f"{tokenizer['vocab_size']:,} entries"
        console.print(f"tokenizer: {entries}, from {tokenizer['given']}: {read}", highlight=False)
        return
    asked = manifest["settings"]["vocab_size"]
    fewer = f" ({asked:,} asked for; the text yields no more)" if tokenizer["vocab_size"] < asked else ""
    console.print(
        f"tokenizer: {tokenizer['vocab_size']:,} entries{fewer}, "
        f"trained on the {tokenizer['trained_on_words']:,} training words"
    )


def _print_domains(manifest: dict[str, Any], console: Console) -> None:
    """What the sample was taken from."""
    from rich.table import Table

    table = Table(title="Domains", title_justify="left")
    table.add_column("domain")
    for title in ("words in the source", "documents", "equal documents", "budget", "taken", "development"):
        table.add_column(title, justify="right")
    for name, row in manifest["domains"].items():
        keys = ("available_words", "available_documents", "equal_documents", "budget", "train", "dev")
        table.add_row(name, *(f"{row[key]:,}" for key in keys))
    console.print(table)
    for name, documents in manifest["other_domains"].items():
        console.print(f"left out, of no domain of the track: {documents:,} documents of {name}")


def _print_cleaning(counts: dict[str, Any], console: Console) -> None:
    from rich.table import Table

    if "unicode" in counts:
        changed = counts["unicode"]
        console.print(f"documents changed to Unicode's form {changed['form']}: {changed['documents']:,}")
    for kind, what in (("exact_duplicates", "equal documents"), ("near_duplicates", "documents that resemble another")):
        if kind in counts:
            console.print(f"{what} left out: {counts[kind]['documents']:,} ({counts[kind]['words']:,} words)")
    if "decontaminate" not in counts:
        return
    found = counts["decontaminate"]
    table = Table(title=f"Benchmarks that share {found['ngram']} consecutive words with the text", title_justify="left")
    table.add_column("benchmark")
    for title in ("items", "long enough", "that overlap", "documents of the text"):
        table.add_column(title, justify="right")
    for name, row in found["benchmarks"].items():
        table.add_row(name, *(f"{row[key]:,}" for key in ("items", "checked", "overlap", "documents")))
    console.print(table)
    removed = found["removed"]
    console.print(f"for overlap left out: {removed['lines']:,} lines, {removed['words']:,} words")


def _total(manifest: dict[str, Any]) -> dict[str, Any]:
    splits = manifest["splits"]
    available = {split: sum(source["available_words"][split] for source in manifest["sources"]) for split in splits}
    return {"name": "total", "available_words": available, **splits}

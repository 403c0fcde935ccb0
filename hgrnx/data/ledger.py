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
    """Print the ledger as a table, with what the tokenizer saw and which lines were left out."""
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
    tokenizer, asked = manifest["tokenizer"], manifest["settings"].get("vocab_size", 0)
    fewer = f" ({asked:,} asked for; the text yields no more)" if tokenizer["vocab_size"] < asked else ""
    made = (
        f"given ({tokenizer['given']}): what it was trained on is not known here"
        if tokenizer["given"]
        else f"trained on the {tokenizer['trained_on_words']:,} training words"
    )
    console.print(f"tokenizer: {tokenizer['vocab_size']:,} entries{fewer}, {made}")
    for key, what in (
        ("blank_lines", "blank lines left out"),
        ("crlf_lines", "carriage returns at line ends dropped"),
        ("byte_order_mark", "byte order marks dropped"),
        ("nul_characters", "NUL characters kept"),
    ):
        count = sum(source[key] for source in manifest["sources"])
        if count:
            console.print(f"{what}: {count:,}")


def _total(manifest: dict[str, Any]) -> dict[str, Any]:
    splits = manifest["splits"]
    available = {split: sum(source["available_words"][split] for source in manifest["sources"]) for split in splits}
    return {"name": "total", "available_words": available, **splits}

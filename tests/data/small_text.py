"""Text for the tests of the data room."""

from __future__ import annotations

WORDS = ["the", "cat", "sees", "a", "dog", "and", "every", "small", "bird", "that", "sings", "near", "our", "house"]


def lines(count: int, start: int = 0) -> str:
    """Lines of three to seven words, all different."""
    return "".join(
        " ".join([f"n{number}", *(WORDS[(number * 7 + i * 3) % len(WORDS)] for i in range(2 + number % 5))]) + "\n"
        for number in range(start, start + count)
    )

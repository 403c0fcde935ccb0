"""Which tokens have to be read to score rows of tokens, so that what rows begin with together is read once.

Sorted, the rows form a tree whose nodes are tokens. A batch is made of neighbouring rows; it is cut into trees where
a model does better with small ones. Sharing ends at the borders of trees, which costs a few tokens each.

Shapes: n rows, L tokens of the longest, T tokens to read, E predictions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from hgrnx.ops import Forest


class Batch(NamedTuple):
    """Tokens to read at once, and what they say about some rows."""

    rows_n: np.ndarray
    """Which rows."""
    tokens_T: np.ndarray
    forest: Forest
    sources_E: np.ndarray
    """The token after which each prediction is made, in ascending order."""
    targets_E: np.ndarray
    """The token predicted."""
    predictions_nL: np.ndarray
    """Which prediction belongs to each token of each row; E where a token is not to be scored."""


def shared_batches(
    rows: Sequence[np.ndarray],
    starts: np.ndarray,
    *,
    batch_tokens: int,
    tree_tokens: int | None = None,
    segment_cost: float = 0.0,
) -> Iterator[Batch]:
    """Batches in which every row occurs once.

    Args:
        rows: token ids.
        starts: place of the first token to score in each row, at least 1; every row has that token.
        batch_tokens: tokens of a batch, counted as number of trees times largest tree; a longer row is one by itself.
        tree_tokens: tokens of a tree; None for as many as a batch has.
        segment_cost: tokens that can be read in the time that it takes a segment to go on from another one.
    """
    order = np.array(sorted(range(len(rows)), key=lambda i: rows[i].astype(">u4").tobytes()), dtype=np.int64)
    shared = np.array([0, *(_common(rows[a], rows[b]) for a, b in zip(order[:-1], order[1:]))], dtype=np.int64)
    inputs = np.array([len(rows[i]) - 1 for i in order], dtype=np.int64)  # a row's last token is never read
    trees = _cut(inputs, shared, min(tree_tokens or batch_tokens, batch_tokens))
    shared[[first for first, _ in trees]] = 0
    first = largest = count = 0
    for number, (_, size) in enumerate(trees):
        largest, count = max(largest, size), count + 1
        following = trees[number + 1] if number + 1 < len(trees) else None
        if following is None or (count + 1) * max(largest, following[1]) > batch_tokens:
            stop = len(rows) if following is None else following[0]
            members = order[first:stop]
            yield _lay_out([rows[i] for i in members], members, starts[members], shared[first:stop], segment_cost)
            first, largest, count = stop, 0, 0


def _common(left: np.ndarray, right: np.ndarray) -> int:
    """How many tokens two rows begin with together."""
    length = min(len(left), len(right))
    differ = left[:length] != right[:length]
    place = int(differ.argmax()) if length else 0
    return place if length and differ[place] else length


def _cut(inputs: np.ndarray, shared: np.ndarray, limit: int) -> list[tuple[int, int]]:
    """The first row and the tokens of each tree."""
    new = inputs - np.minimum(shared, np.concatenate([[0], inputs[:-1]]))
    before = np.concatenate([[0], new.cumsum()])
    trees, begin = [], 0
    while begin < len(inputs):
        room = limit - inputs[begin] + before[begin + 1]
        stop = max(begin + 1, int(np.searchsorted(before, room, side="right")) - 1)
        trees.append((begin, int(inputs[begin] + before[stop] - before[begin + 1])))
        begin = stop
    return trees


def _lay_out(
    rows: Sequence[np.ndarray], members: np.ndarray, starts: np.ndarray, shared: np.ndarray, segment_cost: float
) -> Batch:
    """``shared`` counts the tokens that a row begins with as the one before it does; 0 where a tree begins."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    places = np.arange(lengths.max())
    tokens_nL = np.zeros((len(rows), len(places)), dtype=np.int64)
    tokens_nL[places < lengths[:, None]] = np.concatenate(rows)
    inputs = lengths - 1

    # Numbers grow from row to row, so what a row shares has the largest number above it in its column.
    known = np.minimum(shared, np.concatenate([[0], inputs[:-1]]))
    read_nL = (places >= known[:, None]) & (places < inputs[:, None])
    node_nL = np.maximum.accumulate(_numbered(read_nL), axis=0)
    predicted_nL = (places >= np.maximum(shared, 1)[:, None]) & (places < lengths[:, None])
    prediction_nL = np.maximum.accumulate(_numbered(predicted_nL), axis=0)
    sources_E = node_nL[:, :-1][predicted_nL[:, 1:]]
    targets_E = tokens_nL[predicted_nL]
    tokens_T = tokens_nL[read_nL]

    row_begins = np.flatnonzero(inputs > known)
    hangs_on = np.where(known[row_begins] > 0, node_nL[row_begins, known[row_begins] - 1], -1)
    forest, read_at, tokens_at = _forest(node_nL[row_begins, known[row_begins]], hangs_on, len(tokens_T), segment_cost)

    scored_nL = (places >= starts[:, None]) & (places < lengths[:, None])
    wanted_E = np.zeros(len(sources_E), dtype=bool)
    wanted_E[prediction_nL[scored_nL]] = True
    kept = np.flatnonzero(wanted_E)
    kept = kept[np.argsort(tokens_at[sources_E[kept]], kind="stable")]
    number_E = np.full(len(sources_E), len(kept))
    number_E[kept] = np.arange(len(kept))
    predictions_nL = np.full(scored_nL.shape, len(kept))
    predictions_nL[scored_nL] = number_E[prediction_nL[scored_nL]]
    return Batch(members, tokens_T[read_at], forest, tokens_at[sources_E[kept]], targets_E[kept], predictions_nL)


def _numbered(new_nL: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... where ``new_nL`` holds, row after row; -1 elsewhere."""
    numbers = np.full(new_nL.shape, -1)
    numbers[new_nL] = np.arange(np.count_nonzero(new_nL))
    return numbers


def _forest(
    begins: np.ndarray, hangs_on: np.ndarray, tokens: int, segment_cost: float
) -> tuple[Forest, np.ndarray, np.ndarray]:
    """Segments between the places where a chain of tokens begins or one hangs on.

    Args:
        begins: first token of each chain.
        hangs_on: the token it goes on from; -1 for none.
        tokens: how many there are.
        segment_cost: see :func:`shared_batches`.

    Returns:
        The forest; which token each of its tokens is; and where in it each token is first.
    """
    bounds = np.unique(np.concatenate([begins, hangs_on + 1, [tokens]]))
    parents = np.arange(-1, len(bounds) - 2)  # of what was split: the part before
    parents[np.searchsorted(bounds, begins)] = np.searchsorted(bounds, hangs_on, side="right") - 1
    same = np.arange(tokens)
    if segment_cost == 0:
        return Forest.of(bounds.tolist(), parents.tolist()), same, same
    return _merged(bounds.tolist(), parents.tolist(), segment_cost)


def _merged(bounds: list[int], parents: list[int], segment_cost: float) -> tuple[Forest, np.ndarray, np.ndarray]:
    """The forest without the segments that are cheaper to read again in each of those that go on from them."""
    lengths = [stop - start for start, stop in zip(bounds, bounds[1:])]
    readers = [0] * len(parents)
    merged = [False] * len(parents)
    for segment in reversed(range(len(parents))):
        merged[segment] = (
            readers[segment] > 0 and (readers[segment] - 1) * lengths[segment] < readers[segment] * segment_cost
        )
        if parents[segment] >= 0:
            readers[parents[segment]] += readers[segment] if merged[segment] else 1
    number: dict[int, int] = {-1: -1}
    offsets: list[int] = [0]
    new_parents: list[int] = []
    parts: list[np.ndarray] = []
    for segment, parent in enumerate(parents):
        if merged[segment]:
            continue
        part = [np.arange(bounds[segment], bounds[segment + 1])]
        while parent >= 0 and merged[parent]:
            part.append(np.arange(bounds[parent], bounds[parent + 1]))
            parent = parents[parent]
        number[segment] = len(new_parents)
        new_parents.append(number[parent])
        parts.extend(reversed(part))
        offsets.append(offsets[-1] + sum(map(len, part)))
    read_at = np.concatenate(parts)
    tokens_at = np.empty(bounds[-1], dtype=np.int64)
    tokens_at[read_at[::-1]] = np.arange(len(read_at))[::-1]
    return Forest.of(offsets, new_parents), read_at, tokens_at

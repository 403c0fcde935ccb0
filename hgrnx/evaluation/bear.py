"""BEAR (arXiv 2404.04113): which of a relation's answers makes the likeliest statement about a subject?

As in lm-pub-quiz: every template is filled in with every answer, the first letter made a capital, the whole statement
scored after BOS without a space before it. An instance's accuracy is the mean over templates, a relation's the mean
over its instances; the overall one is over all instances, not over relations. A relation that belongs to several
domains counts to each with an equal part of its weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from hgrnx.data.benchmark_items import BearRelation
from hgrnx.evaluation.choices import Accuracy, Choices, TextScorer, accuracy, mean_accuracy, require_finite
from hgrnx.evaluation.task import ALL_ITEMS, TaskScore, items_hash

Reduction = Literal["sum", "mean"]


class Bear:
    """BEAR as a task; its subtasks are the relations.

    Args:
        relations: what to ask.
        templates: indices of the templates to ask with; all when None.
        reduction: a statement's score is the ``sum`` of its tokens' log-probabilities, or their ``mean``.
    """

    name = "bear"

    def __init__(
        self, relations: Sequence[BearRelation], templates: Sequence[int] | None = None, reduction: Reduction = "sum"
    ) -> None:
        self.relations = {relation.name: relation for relation in relations}
        self.templates = templates
        self.reduction: Reduction = reduction

    @property
    def subtasks(self) -> list[str]:
        return list(self.relations)

    def data_hash(self, subtask: str) -> str:
        return items_hash([self.relations[subtask]], self._templates(subtask), self.reduction)

    def size(self, subtask: str) -> tuple[int, int]:
        relation = self.relations[subtask]
        return len(relation.instances), len(relation.answers) * len(self._templates(subtask))

    def score(self, subtask: str, scorer: TextScorer, items: slice = ALL_ITEMS) -> Choices:
        relation, templates = self.relations[subtask], self._templates(subtask)
        instances = relation.instances[items]
        texts = [
            relation.statement(template, instance.subject, answer)
            for template in templates
            for instance in instances
            for answer in relation.answers
        ]
        scores = scorer.strings(texts, prefix="")
        if self.reduction == "mean":
            scores = scores / scorer.token_counts(texts, prefix="")
        scores_VNK = scores.reshape(len(templates), len(instances), len(relation.answers))
        require_finite(scores_VNK.swapaxes(0, 1), f"{self.name}/{subtask}", items.start)
        return Choices(np.array([instance.answer for instance in instances]), scores_VNK)

    def summarise(self, results: Mapping[str, Choices]) -> TaskScore:
        rows = [accuracy(name, name, choices) for name, choices in results.items()]
        used = {index for name in results for index in self._templates(name)}
        return TaskScore(
            overall=_over_instances(self.name, rows),
            subtasks=rows,
            groups=self._domains(rows),
            templates=[self._template(index, results) for index in sorted(used)] if len(used) > 1 else [],
            settings={"templates": sorted(used), "reduction": self.reduction},
        )

    def texts(self, subtask: str) -> list[tuple[str, ...]]:
        return [self.relations[subtask].answers] * len(self.relations[subtask].instances)

    def _templates(self, subtask: str) -> list[int]:
        count = len(self.relations[subtask].templates)
        return list(range(count)) if self.templates is None else [index for index in self.templates if index < count]

    def _template(self, index: int, results: Mapping[str, Choices]) -> Accuracy:
        """Accuracy with one template alone: what lm-pub-quiz says for ``template_index=index``."""
        rows = []
        for name, choices in results.items():
            if index in self._templates(name):
                place = self._templates(name).index(index)
                rows.append(accuracy(name, name, Choices(choices.right_N, choices.scores_VNK[place : place + 1])))
        return _over_instances(f"template {index}", rows)

    def _domains(self, rows: Sequence[Accuracy]) -> list[Accuracy]:
        members: dict[str, list[tuple[Accuracy, float]]] = {}
        for row in rows:
            domains = self.relations[row.name].domains
            for domain in domains:
                members.setdefault(domain, []).append((row, row.items / len(domains)))
        return [
            mean_accuracy(name, name, [row for row, _ in parts], [weight for _, weight in parts])
            for name, parts in sorted(members.items())
        ]


def _over_instances(name: str, rows: Sequence[Accuracy]) -> Accuracy:
    return mean_accuracy(name, name, rows, [row.items for row in rows])

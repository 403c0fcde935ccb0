"""What a model is trained for."""

from __future__ import annotations

from hgrnx.objectives.base import IGNORE_INDEX, Objective, ObjectiveModule, ObjectiveOutput
from hgrnx.objectives.distillation import Distillation, Teacher
from hgrnx.objectives.next_token import NextToken
from hgrnx.objectives.stored import StoredTeacher
from hgrnx.objectives.teacher import LiveTeacher, find_teachers, load_teachers

__all__ = [
    "IGNORE_INDEX",
    "Distillation",
    "LiveTeacher",
    "NextToken",
    "Objective",
    "ObjectiveModule",
    "ObjectiveOutput",
    "StoredTeacher",
    "Teacher",
    "find_teachers",
    "load_teachers",
]

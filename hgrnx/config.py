"""A run as a typed, frozen value: pydantic models, YAML and dotted overrides.

Two kinds of recipe share their sections. A :class:`Recipe` is one training run. A :class:`DistillRecipe` is
a job of several runs (teacher, student, and a twin of the student without distillation) and makes a
:class:`Recipe` for each. All problems of a recipe are raised together, each with the nearest right key.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from hgrnx.errors import UserError

_UNITS = {
    "step": "steps",
    "steps": "steps",
    "epoch": "epochs",
    "epochs": "epochs",
    "word": "words",
    "words": "words",
}
_SUFFIXES = {"": 1, "k": 1_000, "m": 1_000_000, "b": 1_000_000_000}
_DURATION = re.compile(r"^\s*([0-9]*\.?[0-9]+)\s*([kmb]?)\s*(steps?|epochs?|words?|%)\s*$", re.IGNORECASE)


def parse_duration(text: str) -> tuple[float, Literal["steps", "epochs", "words", "percent"]]:
    """``"3 epochs"``, ``"500 steps"``, ``"1M words"`` or ``"5%"`` as amount and unit.

    Raises:
        ValueError: anything else, or an amount that is not positive.
    """
    match = _DURATION.match(text)
    if not match:
        raise ValueError(f"'{text}' is not a duration; write for example '3 epochs', '500 steps', '1M words' or '5%'")
    amount = float(match[1]) * _SUFFIXES[match[2].lower()]
    if amount <= 0:
        raise ValueError(f"'{text}' must be more than zero")
    unit = "percent" if match[3] == "%" else _UNITS[match[3].lower()]
    return amount, unit  # type: ignore[return-value]


def _check_duration(text: str) -> str:
    parse_duration(text)
    return text


Duration = Annotated[str, AfterValidator(_check_duration)]
"""A length or a period, such as ``"3 epochs"``, ``"500 steps"``, ``"1M words"`` or ``"5%"`` (of the run)."""


class Section(BaseModel):
    """A frozen part of a recipe that refuses unknown keys and values of the wrong type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class DataConfig(Section):
    """Which text, and how it becomes tokens. Everything but ``source`` is part of a dataset's identity."""

    track: str = "demo"
    """``demo`` (made offline by a grammar), ``strict-small`` or ``strict``."""
    source: str | None = None
    """Folder of text files. Not needed once ``hgrnx prepare`` has made the dataset, nor for ``demo``."""
    words: int | None = Field(default=None, gt=0)
    """Words to use; the track's own budget when absent. A shorter prefix of each source is taken in proportion."""
    vocab_size: int = Field(default=16_000, ge=300, le=1_000_000)
    """Entries of the byte-level BPE vocabulary, special tokens included."""
    block_lines: int = Field(default=8, ge=1)
    """For files made of lines: consecutive lines of one file that form one document."""
    seed: int = Field(default=0, ge=0)
    """Seed of the demo grammar."""


class HGRN2Config(Section):
    """HGRN2 (arXiv 2404.07904); keys are those of flash-linear-attention's ``HGRN2Config``."""

    architecture: Literal["hgrn2"] = "hgrn2"
    hidden_size: int = Field(default=256, gt=0)
    """Width of the residual stream."""
    num_hidden_layers: int = Field(default=6, gt=0)
    expand_ratio: int = Field(default=64, gt=0)
    """State size per head: a head has ``expand_ratio`` keys and as many values; heads = hidden_size / expand_ratio."""
    hidden_ratio: int = Field(default=4, gt=0)
    """The gated MLP is ``hidden_ratio * hidden_size * 2/3`` wide, rounded up to a multiple of 256."""
    use_lower_bound: bool = True
    """Learned lower bounds for the forget gates, growing with depth."""
    norm_eps: float = Field(default=1e-6, gt=0)
    tie_word_embeddings: bool = True
    """One matrix for the embedding and the output head."""
    initializer_range: float = Field(default=0.02, gt=0)
    """Standard deviation of the initial linear and embedding weights."""

    @model_validator(mode="after")
    def _heads_divide(self) -> HGRN2Config:
        if self.hidden_size % self.expand_ratio:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of expand_ratio={self.expand_ratio}, "
                "because heads = hidden_size / expand_ratio"
            )
        return self


ModelConfig = HGRN2Config


class TrainingConfig(Section):
    """How the weights are fitted. Batches are global: workers and accumulation do not change them."""

    duration: Duration = "3 epochs"
    """Length of the training."""
    batch_size: int = Field(default=64, gt=0)
    """Sequences in a global batch."""
    seq_len: int = Field(default=512, ge=8)
    """Tokens in a sequence."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate, reached after the warm-up."""
    final_learning_rate: float = Field(default=0.0, ge=0, le=1)
    """Learning rate of the last step, as a share of the peak; the schedule falls linearly to it."""
    warmup: Duration = "5%"
    """Linear warm-up from zero."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates."""
    eps: float = Field(default=1e-8, gt=0)
    """AdamW's epsilon."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled weight decay; applied to matrices, not to norms and lower bounds."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this global norm."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """``bf16``: float32 weights, bfloat16 autocast."""
    checkpoint_every: Duration = "10%"
    """Period of checkpoints; the last step always has one."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints kept. The last one of a finished run stays."""
    log_every: int = Field(default=10, ge=1)
    """Steps between two lines of metrics."""


class EvaluationConfig(Section):
    """What is measured, and when."""

    every: Duration = "1 epoch"
    """Period of the evaluation during training; it also happens at the end."""
    minimal_pairs: str | None = None
    """Folder of minimal pairs in BLiMP's JSONL format; when absent the dataset's own pairs, if it has any."""
    pairs_per_file: int | None = Field(default=None, gt=0)
    """Pairs of each file used during training (all when absent). The evaluation at the end uses all."""
    dev_documents: int | None = Field(default=None, gt=0)
    """Development documents, evenly spaced, used during training (all when absent). The end uses all."""


class LaunchConfig(Section):
    """On what the run is computed. Not part of its identity: a run may continue on another shape."""

    num_workers: int = Field(default=1, ge=1)
    """Ray Train workers (processes); each has one GPU when ``use_gpu``."""
    use_gpu: bool = False
    cpus_per_worker: int = Field(default=1, ge=1)
    """CPU cores, and threads, of each worker."""
    micro_batch_size: int | None = Field(default=None, gt=0)
    """Sequences that go through the model at once; the rest of a worker's share is accumulated. All when absent."""
    engine: Literal["deepspeed", "torch"] = "deepspeed"
    """``deepspeed`` (ZeRO) or plain ``torch`` (DistributedDataParallel)."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed's ZeRO stage: what is sharded over the workers (1 optimizer, 2 and gradients, 3 and weights)."""
    max_failures: int = Field(default=3, ge=0)
    """How often lost workers are replaced before the run gives up."""
    collective_timeout_s: float = Field(default=600.0, gt=0)
    """Seconds after which a worker that does not answer counts as lost."""


class DistillConfig(Section):
    """The loss is (1 - weight) CE + weight T^2 KL(teacher || student), both softened by the temperature T."""

    weight: float = Field(default=0.5, ge=0, le=1)
    """Share of the teacher's signal in the loss."""
    temperature: float = Field(default=1.0, gt=0)
    """Softens teacher and student; the KL is scaled by its square (Hinton et al., arXiv 1503.02531)."""
    teachers: tuple[str, ...] = ()
    """Names of runs or Hugging Face folders to learn from. When empty, the job trains its own teacher first."""


_R = TypeVar("_R", bound="_CommonRecipe")


class _CommonRecipe(Section):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,60}$")
    """Short name; run folders and MLflow runs start with it."""
    seed: int = Field(default=0, ge=0)
    """Fixes initial weights and data order."""
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    launch: LaunchConfig = LaunchConfig()

    @model_validator(mode="after")
    def _batch_divides(self: _R) -> _R:
        batch, workers, micro = (
            self.training.batch_size,
            self.launch.num_workers,
            self.launch.micro_batch_size,
        )
        if batch % workers:
            raise ValueError(f"training.batch_size={batch} must be a multiple of launch.num_workers={workers}")
        if micro is not None and (batch // workers) % micro:
            raise ValueError(
                f"launch.micro_batch_size={micro} must divide the {batch // workers} sequences of each worker "
                f"(training.batch_size={batch} / launch.num_workers={workers})"
            )
        return self


class Recipe(_CommonRecipe):
    """One training run; with ``distill``, from the teachers named there."""

    model: ModelConfig = Field(default_factory=HGRN2Config)
    distill: DistillConfig | None = None

    def identity(self) -> dict[str, Any]:
        """What decides the resulting weights: everything but where it is computed and how often it is measured."""
        content = self.model_dump(mode="json", exclude={"launch", "evaluation"})
        del content["data"]["source"]  # where the text lay; its content is in the dataset's hash
        for key in ("checkpoint_every", "keep_checkpoints", "log_every"):
            del content["training"][key]
        return content


class DistillRecipe(_CommonRecipe):
    """A job: train a teacher, distil it into a student, and train the student's twin without the teacher."""

    teacher: ModelConfig | None = None
    """The teacher's architecture. Absent only where ``distill.teachers`` names existing ones."""
    student: ModelConfig = Field(default_factory=HGRN2Config)
    distill: DistillConfig = DistillConfig()
    twin: bool = True
    """Also train the student's twin: same size, seed, words, no teacher."""

    @model_validator(mode="after")
    def _one_teacher(self) -> DistillRecipe:
        if self.teacher is None and not self.distill.teachers:
            raise ValueError("there is no teacher: give a 'teacher' section, or name runs in distill.teachers")
        if self.teacher is not None and self.distill.teachers:
            raise ValueError("there are two teachers: give either a 'teacher' section or distill.teachers, not both")
        return self

    def teacher_recipe(self) -> Recipe | None:
        """The teacher's run, with a seed of its own so that teacher and student do not start as one model."""
        if self.teacher is None:
            return None
        return self._stage("teacher", self.teacher, seed=self.seed + 1_000)

    def student_recipe(self, teachers: Sequence[str]) -> Recipe:
        """The student's run, learning from ``teachers`` (run folders or Hugging Face folders)."""
        distill = self.distill.model_copy(update={"teachers": tuple(teachers)})
        return self._stage("student", self.student, seed=self.seed, distill=distill)

    def twin_recipe(self) -> Recipe:
        """The undistilled twin's run: the student's recipe without the teacher."""
        return self._stage("twin", self.student, seed=self.seed)

    def _stage(self, stage: str, model: ModelConfig, seed: int, distill: DistillConfig | None = None) -> Recipe:
        return Recipe(
            name=f"{self.name}-{stage}",
            seed=seed,
            data=self.data,
            model=model,
            training=self.training,
            evaluation=self.evaluation,
            launch=self.launch,
            distill=distill,
        )


AnyRecipe = Recipe | DistillRecipe


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("hgrnx") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> AnyRecipe:
    """Read a shipped recipe or a YAML file and apply ``key=value`` overrides with dotted keys.

    Raises:
        UserError: no such recipe, not YAML, or one or more wrong keys or values; all of them are named.
    """
    where, text = _read_recipe(name_or_path)
    values = _parse_yaml(text, where)
    problems: list[str] = []
    for override in overrides:
        key, equals, raw = override.partition("=")
        if not equals or not key:
            problems.append(f"'{override}': write overrides as key=value, for example training.learning_rate=1e-3")
            continue
        _set_dotted(values, key.strip(), _parse_yaml_value(raw), problems)
    kind: type[Recipe] | type[DistillRecipe] = (
        DistillRecipe if {"student", "teacher", "twin"} & values.keys() else Recipe
    )
    return _validate(kind, values, where, problems)


def recipe_from_dict(values: dict[str, Any], where: str = "recipe") -> AnyRecipe:
    """The inverse of ``model_dump(mode="json")``. Raises :class:`UserError` naming every wrong key."""
    kind: type[Recipe] | type[DistillRecipe] = DistillRecipe if "student" in values else Recipe
    return _validate(kind, values, where, [])


def to_yaml(recipe: AnyRecipe) -> str:
    """The complete recipe, defaults included, as YAML that :func:`load_recipe` reads back."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def flatten(recipe: AnyRecipe) -> dict[str, Any]:
    """One flat dict with dotted keys (``training.learning_rate``), for Tune, MLflow and tables."""
    return dict(_flat_items(recipe.model_dump(mode="json"), ""))


def run_name(recipe: Recipe, data_hash: str) -> str:
    """Folder and MLflow name of a run: the recipe's name and a hash of all that decides its weights."""
    content = json.dumps([recipe.identity(), data_hash], sort_keys=True)
    return f"{recipe.name}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def _read_recipe(name_or_path: str) -> tuple[str, str]:
    path = Path(name_or_path)
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        try:
            return str(path), path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from None
        except OSError as error:
            raise UserError(f"Cannot read the recipe {path}: {error.strerror}.") from None
    names = shipped_recipes()
    if name_or_path not in names:
        near = difflib.get_close_matches(name_or_path, names, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise UserError(
            f"There is no recipe '{name_or_path}'.{hint} Shipped recipes: {', '.join(names)}. "
            "Or give the path of a .yaml file."
        )
    return name_or_path, (resources.files("hgrnx") / "recipes" / f"{name_or_path}.yaml").read_text(encoding="utf-8")


class _Loader(yaml.SafeLoader):
    """YAML with 1e-3 as a number (YAML 1.2) and without duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key_node.value}' is written twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _parse_yaml(text: str, where: str) -> dict[str, Any]:
    try:
        values = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{where}{line}: not valid YAML: {getattr(error, 'problem', error)}.") from None
    if not isinstance(values, dict):
        raise UserError(f"{where} is {'empty' if values is None else 'not a mapping'}: a recipe is 'key: value' lines.")
    return values


def _parse_yaml_value(raw: str) -> Any:
    try:
        return yaml.load(raw, Loader=_Loader)
    except yaml.YAMLError:
        return raw


def _set_dotted(values: dict[str, Any], key: str, value: Any, problems: list[str]) -> None:
    *parents, last = key.split(".")
    for depth, parent in enumerate(parents):
        inner = values.get(parent)
        if inner is None:
            inner = {}
        if not isinstance(inner, dict):
            problems.append(f"{key}: '{'.'.join(parents[: depth + 1])}' is a value, not a section")
            return
        values[parent] = values = dict(inner)
    values[last] = value


def _validate(kind: type[Any], values: dict[str, Any], where: str, problems: list[str]) -> Any:
    recipe = None
    try:
        # Through JSON, so that strict mode takes lists for tuples but still refuses "512" and true for numbers.
        recipe = kind.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        problems += [_explain(kind, item) for item in error.errors()]
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise UserError(f"The recipe {where} has {count}:\n{lines}")
    return recipe


def _explain(kind: type[BaseModel], item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        known = list(_known_keys(kind, ""))
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        if not near:  # the right name in another section, perhaps
            near = [name for name in known if name.rsplit(".", 1)[-1] == str(item["loc"][-1])][:1]
        return f"{key}: there is no such key" + (f"; did you mean {near[0]}?" if near else "")
    message = item["msg"].removeprefix("Value error, ")
    given = "" if isinstance(item["input"], dict) else f" (given: {json.dumps(item['input'], default=str)})"
    if item["type"] == "missing":
        given = ""
    return f"{key}: {message}{given}" if key else message


def _known_keys(kind: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in kind.model_fields.items():
        yield prefix + name
        for inner in _models_in(field.annotation):
            yield from _known_keys(inner, f"{prefix}{name}.")


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _models_in(inner)


def _flat_items(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield from _flat_items(inner, f"{prefix}{key}.")
        else:
            yield prefix + key, inner

"""The sections of a recipe, each a frozen value whose fields say what they do."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hgrnx.config.best import check_metric
from hgrnx.config.durations import Duration, Points


class Section(BaseModel):
    """A frozen part of a recipe that refuses unknown keys and values of the wrong type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class NearDuplicatesConfig(Section):
    """Documents that resemble an earlier one are left out (MinHash over runs of words)."""

    threshold: float = Field(default=0.8, gt=0, lt=1)
    """Jaccard similarity of the sets of word runs, from which a document counts as a copy."""
    ngram: int = Field(default=5, ge=1)
    """Words in a run."""


class DecontaminationConfig(Section):
    """Words that the training text and the benchmarks have in common; reported, and left out if asked for."""

    benchmarks: str
    """Folder with the benchmarks' files (``blimp_filtered/``, ``ewok/``, ...). Its place is no part of the identity."""
    ngram: int = Field(default=8, ge=3)
    """Consecutive words, without punctuation and case, that make an overlap."""
    remove: Literal["nothing", "lines", "documents"] = "nothing"
    """What of the text is left out where it overlaps; ``nothing`` only reports."""
    threshold: float = Field(default=0.0, ge=0, lt=1)
    """Share of a line's (document's) words inside overlaps above which it is left out; 0 for any overlap."""


class CleaningConfig(Section):
    """What is done to the documents before anything is counted; each part is off unless asked for."""

    unicode: Literal["NFC", "NFKC"] | None = None
    """Unicode normalisation form of the text."""
    exact_duplicates: bool = False
    """Leave out documents that are equal to an earlier one (about 0.15 KB of memory a document)."""
    near_duplicates: NearDuplicatesConfig | None = None
    """Leave out documents that resemble an earlier one (about 2 KB of memory a document)."""
    decontaminate: DecontaminationConfig | None = None
    """Look for the benchmarks' text."""


class DataConfig(Section):
    """Which text, and how it becomes tokens. Part of a dataset's identity: all but ``source``, ``enforce_budget``."""

    track: str = "demo"
    """``demo`` (made offline by a grammar), another shipped track, or the path of a track's YAML file."""
    source: str | None = None
    """Folder of text files, or ``hub``. Not needed once ``hgrnx prepare`` has made the dataset, nor for ``demo``."""
    words: int | None = Field(default=None, gt=0)
    """Words to use; the track's own budget when absent. Each source, or domain, gives its share in proportion."""
    cleaning: CleaningConfig = CleaningConfig()
    enforce_budget: bool = True
    """Refuse runs that break the track's rules (words, passes); ``false`` only warns."""
    vocab_size: int = Field(default=16_000, ge=300, le=1_000_000)
    """Entries of the byte-level BPE vocabulary, special tokens included."""
    tokenizer: str | None = None
    """An existing ``tokenizer.json`` (file or folder), instead of one trained on the training text."""
    block_lines: int = Field(default=8, ge=1)
    """For files made of lines: consecutive lines of one file that form one document."""
    seed: int = Field(default=0, ge=0)
    """Seed of the demo grammar, and of the sample where a track is sampled."""


class WeightAverageConfig(Section):
    """An exponential moving average of the weights over the steps, without a trace of the initial weights."""

    half_life: Duration = "2%"
    """How long it takes until a step's weights count half as much."""
    every: int = Field(default=10, ge=1)
    """Steps between two that are looked at."""


class SeqLenWarmupConfig(Section):
    """Sequences are cut into 2^k pieces that do not see each other; k falls evenly to 0."""

    first: int = Field(default=64, ge=1)
    """Tokens in a piece at the beginning: ``seq_len`` divided by a power of two."""
    duration: Duration = "30%"
    """When the sequences are whole."""


class TrainingConfig(Section):
    """How the weights are fitted. Batches are global: workers and accumulation do not change them."""

    duration: Duration = "3 epochs"
    """Length of the training."""
    batch_size: int = Field(default=64, gt=0)
    """Sequences in a global batch."""
    seq_len: int = Field(default=512, ge=8)
    """Tokens in a sequence."""
    reset_state: Literal["never", "document"] = "never"
    """Sequences are cut from all documents in a row; ``document``: none sees what was before it (``cu_seqlens``)."""
    seq_len_warmup: SeqLenWarmupConfig | None = None
    """Begin with the sequences cut into shorter ones; tokens and words of a batch stay the same."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate, reached after the warm-up."""
    final_learning_rate: float = Field(default=0.0, ge=0, le=1)
    """Learning rate of the last step, as a share of the peak; the schedule falls to it."""
    warmup: Duration = "5%"
    """Linear warm-up from zero."""
    schedule: Literal["linear", "cosine", "wsd"] = "linear"
    """How the rate falls after the warm-up: in a line, as half a cosine, or (``wsd``) only at the end, in a line."""
    decay: Duration = "20%"
    """Length of the fall of ``wsd`` (warm-up, stable, decay), up to the last step."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """``muon`` (arXiv 2502.16982) for the matrices inside the model, AdamW for the rest, with one learning rate."""
    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Muon's momentum."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates."""
    eps: float = Field(default=1e-8, gt=0)
    """AdamW's epsilon."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled weight decay; applied to matrices, not to norms, biases and what decides gates by itself."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this global norm."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """``bf16``: float32 weights, bfloat16 autocast."""
    weight_average: WeightAverageConfig | None = None
    """Average the weights over the steps; evaluation, exports and teachers then take the average."""
    checkpoint_every: Duration = "10%"
    """Period of checkpoints; the last step always has one."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints kept. The last one of a finished run stays."""
    word_milestones: bool = False
    """Also keep the weights after 1M, 2M ... 10M, 20M ... 100M, 200M ... 1B words seen, as BabyLM asks for."""
    log_every: int = Field(default=10, ge=1)
    """Steps between two lines of metrics."""
    on_bad_step: Literal["stop", "skip", "roll_back"] = "stop"
    """Where loss or gradient are not finite: ``stop``; ``skip``: the step changes nothing; ``roll_back``: go back to
    the last checkpoint and pass over all batches since, the bad one included."""
    max_loss: float | None = Field(default=None, gt=0)
    """Loss per token (nats) above which a step is bad as well."""
    max_bad_steps: int = Field(default=10, ge=1)
    """How often steps are skipped, or a checkpoint is gone back to, before the run stops."""
    max_checkpoint_failures: int = Field(default=0, ge=0)
    """How many checkpoints in a row may fail to be written (full disk) before the run stops; the last one must not."""

    @model_validator(mode="after")
    def _pieces_divide(self) -> TrainingConfig:
        if self.seq_len_warmup is not None:
            pieces, rest = divmod(self.seq_len, self.seq_len_warmup.first)
            if rest or pieces < 2 or pieces & (pieces - 1):
                raise ValueError(
                    f"training.seq_len_warmup.first={self.seq_len_warmup.first} must be training.seq_len="
                    f"{self.seq_len} divided by 2, 4, 8 or another power of two"
                )
        return self


class EvaluationConfig(Section):
    """What is measured, and when."""

    every: Duration = "1 epoch"
    """Period of the evaluation during training; it also happens at the end."""
    minimal_pairs: str | None = None
    """Folder of minimal pairs in BLiMP's JSONL format; when absent the dataset's own pairs, if it has any."""
    pairs_per_file: int | None = Field(default=None, gt=0)
    """Pairs of each file used during training (all when absent). The evaluation at the end uses all."""
    dev_documents: int | None = Field(default=None, gt=0)
    """Development documents, evenly spaced, used during training (all when absent)."""
    final_dev_documents: int | None = Field(default=None, gt=0)
    """Development documents used at the end (all when absent): for many short runs, whose end would take long."""
    tasks: tuple[str, ...] = ()
    """Zero-shot benchmark tasks scored while the model learns: ``blimp``, ``supplement``, ``ewok``, ``bear``, ..."""
    data: str | None = None
    """Folder of the tasks' files in the BabyLM pipeline's layout; fetched from the Hugging Face hub when absent."""
    tasks_every: Points = "1 epoch"
    """When the tasks are scored: a period, or ``milestones`` (1M, 2M ... 10M, 20M ... 100M, 200M ... 1B words)."""
    tasks_waiting: int = Field(default=4, ge=3)
    """Weights that may wait for their scores; beyond them points of a period are left out. Milestones never are."""
    best: str | None = None
    """Metric by which the best weights are kept, such as ``dev/bits_per_byte`` or ``tasks/blimp/accuracy``."""

    @model_validator(mode="after")
    def _best_is_a_metric(self) -> EvaluationConfig:
        if self.best is not None:
            check_metric(
                self.best,
                self.tasks,
                dev_documents=self.dev_documents,
                final_dev_documents=self.final_dev_documents,
                pairs_per_file=self.pairs_per_file,
            )
        return self


class LaunchConfig(Section):
    """On what the run is computed. Not part of its identity: a run may continue on another shape."""

    num_workers: int = Field(default=1, ge=1)
    """Ray Train workers (processes); each has one GPU when ``use_gpu``."""
    min_workers: int | None = Field(default=None, ge=1)
    """When given, a run also starts, and goes on after losing nodes, with fewer workers, down to this number."""
    use_gpu: bool = False
    cpus_per_worker: int = Field(default=1, ge=1)
    """CPU cores, and threads, of each worker."""
    micro_batch_size: int | None = Field(default=None, gt=0)
    """Sequences that go through the model at once; the rest of a worker's share is accumulated. All when absent."""
    activation_checkpointing: bool = False
    """Compute every layer again in the backward instead of keeping its activations: less memory, more time."""
    engine: Literal["deepspeed", "torch"] = "deepspeed"
    """``deepspeed`` (ZeRO) or plain ``torch`` (DistributedDataParallel)."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed's ZeRO stage: what is sharded over the workers (1 optimizer, 2 and gradients, 3 and weights)."""
    max_failures: int = Field(default=3, ge=0)
    """How often lost workers are replaced before the run gives up."""
    collective_timeout_s: float = Field(default=600.0, gt=0)
    """Seconds after which a worker that does not answer counts as lost."""
    upload_to: str | None = Field(default=None, pattern=r"^[a-z][a-z0-9]*://[^@]*$")
    """URI of a folder (``s3://``, ``gs://``, ``hdfs://``, ``file://``) to which every checkpoint is copied beside the
    training. A run that finds none of its own goes on from there. Keys belong into the environment, not here."""


SIGNAL_TEMPERATURES = (0.5, 0.6, 0.75, 1.0, 1.5, 2.0, 3.0, 6.0)
"""Where a stored signal of a teacher knows its log-sum-exp; at others, above the lowest, it is interpolated."""


class DistillConfig(Section):
    """The loss is (1 - weight) CE + weight T^2 KL(teacher || student), both softened by the temperature T."""

    weight: float = Field(default=0.5, ge=0, le=1)
    """Share of the teacher's signal in the loss."""
    final_weight: float | None = Field(default=None, ge=0, le=1)
    """The weight at the last step, reached in a line from ``weight`` at the first; constant when absent."""
    temperature: float = Field(default=1.0, gt=0)
    """Softens teacher and student; the KL is scaled by its square (Hinton et al., arXiv 1503.02531)."""
    final_temperature: float | None = Field(default=None, gt=0)
    """The temperature at the last step, likewise."""
    reverse_kl: bool = False
    """KL(student || teacher) instead (MiniLLM, arXiv 2306.08543)."""
    hidden_weight: float = Field(default=0.0, ge=0)
    """Adds this times 1 - cosine of student's and teacher's last hidden states, which must have one width."""
    generations: int = Field(default=1, ge=1)
    """Students trained one after the other, each from the one before (born-again networks, arXiv 1805.04770)."""
    teachers: tuple[str, ...] = ()
    """Names of runs or Hugging Face folders to learn from. When empty, the job trains its own teacher first."""
    top_k: int | None = Field(default=None, ge=1)
    """Learn from the teacher's k likeliest tokens and what lies beyond them as one, stored once before the training,
    instead of running the teacher at every step."""

    @model_validator(mode="after")
    def _can_be_stored(self) -> DistillConfig:
        if self.top_k is None:
            return self
        if len(self.teachers) > 1:
            raise ValueError(
                f"distill.top_k={self.top_k} stores the signal of one teacher, and distill.teachers names "
                f"{len(self.teachers)}: leave top_k out, so that they run beside the student, or name one"
            )
        for key, temperature in (("temperature", self.temperature), ("final_temperature", self.final_temperature)):
            if temperature is not None and temperature < SIGNAL_TEMPERATURES[0]:
                raise ValueError(
                    f"distill.{key}={temperature:g} is below {SIGNAL_TEMPERATURES[0]:g}, the lowest at which a "
                    "stored signal (distill.top_k) is known: raise it, or leave top_k out"
                )
        if self.reverse_kl or self.hidden_weight:
            raise ValueError(
                "distill.reverse_kl and distill.hidden_weight need the teacher itself beside the student: leave "
                "distill.top_k out"
            )
        return self

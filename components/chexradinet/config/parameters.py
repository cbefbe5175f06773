"""Parameters of the pipelines: every setting of a stage, under one name, with where things run.

A parameter is a leaf of `TrainingSettings`, `NightlySettings` or `StudySettings`; leaves of one
name in several stages, such as `seed`, are one parameter. `flat` lists them, `nested` gives each
stage its own.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self, TypeVar

from pydantic import Field, model_validator

from chexradinet.config.base import Settings, is_internal, leaves, needed, require
from chexradinet.config.ingest import IngestConfig
from chexradinet.config.nightly import PlanConfig
from chexradinet.config.training import (
    MAX_ROUNDS_LIMIT,
    EvaluationConfig,
    NetworkConfig,
    Pretext,
    PretrainConfig,
    PublishConfig,
    RadiomicsConfig,
    RegionConfig,
    RetrainConfig,
    StudyPlan,
    TrainConfig,
)
from chexradinet.errors import ConfigError
from chexradinet.findings import KNOWN_FINDINGS
from chexradinet.version import __version__

WORKER_IMAGE = os.environ.get("CHEXRADINET_IMAGE", f"chexradinet-worker-python:{__version__}")
"""Image that steps are compiled for; the `worker_image` parameter of a run replaces it."""

MAX_SHARDS = 16
"""Most shards of all rounds together: Argo keeps what it knows of a run in one object of 1 MiB."""

_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|Pi|Ei|k|M|G|T|P|E)?")

Model = TypeVar("Model", bound=Settings)


class Placement(Settings):
    """Where steps run."""

    worker_image: str = Field(default=WORKER_IMAGE, min_length=1)
    """Image of every step, with a tag or a digest."""
    accelerator_type: str = ""
    """Kubernetes name of the accelerator, such as nvidia.com/gpu; empty asks for none."""
    accelerator_count: int = Field(default=0, ge=0)
    """Accelerators of each step that uses them, one at most if it scores; 0 computes on the
    processor."""
    node_selector: dict[str, str] = Field(default={})
    """Labels of the nodes for accelerator steps, as a JSON object."""
    tolerations: list[dict[str, Any]] = Field(default=[])
    """Tolerations of accelerator steps, as a JSON list."""

    @model_validator(mode="after")
    def _memories_are_quantities(self) -> Self:
        for name in type(self).model_fields:
            if name.endswith("_memory"):
                given = getattr(self, name)
                wanted = "a Kubernetes quantity such as 16Gi"
                require(_QUANTITY.fullmatch(given) is not None, name, given, wanted)
        return self


class TrainingPlacement(Placement):
    """Where the steps of the training pipeline run."""

    accelerator_type: str = "nvidia.com/gpu"
    """Kubernetes name of the accelerator; empty asks for none."""
    accelerator_count: int = Field(default=1, ge=0)
    """Accelerators of each training step, or of each of its nodes; heatmaps and evaluation take one
    at most. 0 computes on the processor."""
    num_nodes: int = Field(default=1, ge=1, le=64)
    """Nodes of each training; above 1 they are those of a Kubeflow Trainer TrainJob."""
    ingest_memory: str = "4Gi"
    """Memory of the ingest step."""
    training_memory: str = "6Gi"
    """Memory of each training and evaluation step, and of each node of a training."""
    heatmap_memory: str = "4Gi"
    """Memory of each heatmap shard."""
    radiomics_memory: str = "2Gi"
    """Memory of each radiomics shard."""

    @property
    def num_processes(self) -> int:
        """Processes that train together: one per accelerator of all nodes, or one per node."""
        return self.num_nodes * max(1, self.accelerator_count if self.accelerator_type else 0)


class NightlyPlacement(Placement):
    """Where the steps of the nightly pipeline run."""

    scoring_memory: str = "4Gi"
    """Memory of each scoring shard."""


class RoundZero(Settings):
    """What the train stage takes."""

    network: NetworkConfig = NetworkConfig()
    pretrain: PretrainConfig = PretrainConfig()
    training: TrainConfig = TrainConfig()
    initial_weights: str = ""
    """Encoder that `pretrain` wrote, or torchvision state dict, to start from: a path or URI; empty
    starts at random."""
    reuse: bool = True
    """Take a finished result of equal inputs and settings instead of making it again."""


class Pretraining(Settings):
    """What the pretrain stage takes."""

    network: NetworkConfig = NetworkConfig()
    pretrain: PretrainConfig = PretrainConfig()


class Look(Settings):
    """What heatmap and radiomics take."""

    regions: RegionConfig = RegionConfig()
    radiomics: RadiomicsConfig = RadiomicsConfig()


class Assessment(Look):
    """What the evaluate stage takes."""

    evaluation: EvaluationConfig = EvaluationConfig()


class Rounds(Settings):
    """How many guided rounds there are, and how they are spread."""

    rounds: int = Field(default=2, ge=0, le=MAX_ROUNDS_LIMIT)
    """Most guided rounds; at most as many as the pipeline was compiled for."""
    compare_arms: bool = True
    """Train the control arm beside every round, and if `guidance` contrasts, the permuted one."""
    num_shards: int = Field(default=0, ge=0, le=MAX_SHARDS)
    """Parts that heatmaps and radiomics are spread over; 0 takes one per 2,500 training images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a compiled training pipeline has tasks for."""

    max_rounds: int
    has_arms: bool

    @property
    def max_shards(self) -> int:
        """Most shards of a round: fewer with more rounds, and with arms."""
        room = MAX_SHARDS * 3 // 4 if self.has_arms else MAX_SHARDS
        return room // max(1, self.max_rounds)

    def check(self, asked: Rounds) -> None:
        """Refuse what there are no tasks for.

        Raises:
            ConfigError: the pipeline was compiled for fewer rounds or shards, or other arms.
        """
        again = "compile the pipeline for more, as `submit` and `run` do"
        limits = {"rounds": self.max_rounds, "num_shards": self.max_shards}
        for name, most in limits.items():
            given = getattr(asked, name)
            require(given <= most, name, given, f"at most {most} here; {again}")
        require(
            asked.rounds == 0 or asked.compare_arms == self.has_arms,
            "compare_arms",
            asked.compare_arms,
            f"{self.has_arms} here; compile the pipeline again, as `submit` and `run` do",
        )


class TrainingSettings(Settings):
    """All parameters of the training pipeline, by stage."""

    source: str = Field(min_length=1)
    """Folder or s3:// prefix of the X-rays and their label table."""
    models_uri: str = Field(min_length=1)
    """Folder or s3:// prefix that models are published under."""
    labels: str = ""
    """Folder or s3:// prefix of the label tables; empty if they lie in the source."""
    ingest: IngestConfig = IngestConfig()
    train: RoundZero = RoundZero()
    rounds: Rounds = Rounds()
    look: Look = Look()
    retrain: RetrainConfig = RetrainConfig()
    evaluate: Assessment = Assessment()
    publish: PublishConfig = PublishConfig()
    placement: TrainingPlacement = TrainingPlacement()

    @model_validator(mode="after")
    def _targets_are_of_findings(self) -> Self:
        known = self.ingest.finding_names or KNOWN_FINDINGS
        for name in self.evaluate.evaluation.target_findings:
            needed = f"targets of {', '.join(known)}"
            require(name in known, "target_sensitivity", name, needed)
        return self

    @model_validator(mode="after")
    def _a_pretext_has_one_accelerator(self) -> Self:
        """Refuse a pretext in a step whose other nodes or accelerators would wait for it."""
        advice = "with a pretext; or run `chexradinet pretrain` first, and give initial_weights"
        if self.train.pretrain.pretext is not Pretext.NONE:
            nodes, accelerators = self.placement.num_nodes, self.placement.accelerator_count
            require(nodes == 1, "num_nodes", nodes, f"1 {advice}")
            require(accelerators <= 1, "accelerator_count", accelerators, f"at most 1 {advice}")
        return self

    @model_validator(mode="after")
    def _each_process_has_an_image(self) -> Self:
        processes = self.placement.num_processes
        for config in (self.train.training, self.retrain):
            least = processes * config.accumulation
            wanted = f"at least {least}: an image for each accelerator, in each of its parts"
            fits = processes == 1 or config.batch_size >= least
            require(fits, "batch_size", config.batch_size, wanted)
        return self


class NightlySettings(Settings):
    """All parameters of the nightly pipeline, by stage."""

    inbox_uri: str = Field(min_length=1)
    """Folder or s3:// prefix that X-rays arrive in: DICOM, PNG or JPEG."""
    models_uri: str = Field(min_length=1)
    """Folder or s3:// prefix that models are published under."""
    results_uri: str = Field(min_length=1)
    """Folder or s3:// prefix of the results and their ledger."""
    archive_uri: str = ""
    """Archive that DICOM results are sent to, as dicomweb://host/path; empty sends none."""
    plan: PlanConfig = PlanConfig()
    num_decoders: int = Field(default=2, ge=0)
    """Processes that read and decode ahead of the network; 0 takes what processors and memory
    allow."""
    decode_timeout_s: float = Field(default=60.0, gt=0)
    """Most seconds that decoding one file may take; over it the file is rejected."""
    lease_ttl_s: float = Field(default=600.0, gt=0)
    """Seconds without a sign of life after which another run takes over."""
    placement: NightlyPlacement = NightlyPlacement()

    @model_validator(mode="after")
    def _archive_gets_something(self) -> Self:
        written = self.plan.results.dicom_results or not self.archive_uri
        needed = "empty unless dicom_results is true: only DICOM results are sent"
        require(written, "archive_uri", self.archive_uri, needed)
        return self


class StudyPlacement(Placement):
    """Where the steps of the study pipeline run."""

    accelerator_type: str = "nvidia.com/gpu"
    """Kubernetes name of the accelerator; empty asks for none."""
    accelerator_count: int = Field(default=1, ge=0, le=1)
    """Accelerators of each part; 0 computes on the processor."""
    ingest_memory: str = "4Gi"
    """Memory of the ingest step."""
    training_memory: str = "6Gi"
    """Memory of each part and of the report."""


class StudySettings(Settings):
    """All parameters of the study pipeline."""

    source: str = Field(min_length=1)
    """Folder or s3:// prefix of the X-rays and their label table."""
    plan: dict[str, Any] = Field(json_schema_extra={"needed": "the content of a study.yaml"})
    """Arms, comparisons, numbers of labels, seeds and margin, fixed before anything runs; as in a
    study.yaml, as a JSON object."""
    labels: str = ""
    """Folder or s3:// prefix of the label tables; empty if they lie in the source."""
    ingest: IngestConfig = IngestConfig()
    placement: StudyPlacement = StudyPlacement()

    @model_validator(mode="after")
    def _plan_is_possible(self) -> Self:
        try:
            StudyPlan(**self.plan)
        except ConfigError as error:
            raise ConfigError(f"plan: {error}") from error
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One parameter of a pipeline, as forms, options and the check of a run need it."""

    name: str
    kind: type
    """str, int, float, bool, dict or list."""
    default: Any
    """JSON-ready; None if a value must be given."""
    description: str
    needed: str
    """What a value must be, such as `in (0, 1)`."""
    internal: bool
    """Whether neither pipelines nor commands show it."""


def flat(model: type[Settings]) -> dict[str, Parameter]:
    """Return every setting of a model by name, in order; names that repeat are one."""
    found: dict[str, Parameter] = {}
    for path, field in leaves(model):
        default = _default(model, path)
        kind = _kind(field.annotation)
        if issubclass(kind, str) and isinstance(default, list):
            default = ",".join(default)
        found.setdefault(
            path[-1],
            Parameter(
                name=path[-1],
                kind=kind,
                default=default,
                description=" ".join((field.description or "").split()),
                needed=needed(field),
                internal=is_internal(field) or _under_internal(model, path),
            ),
        )
    return found


def nested(model: type[Model], values: Mapping[str, Any]) -> Model:
    """Return the settings of which these are the leaves, by name; the others keep their defaults.

    Raises:
        ConfigError: values are out of bounds, of a wrong type, missing or unknown; all are named.
    """
    tree: dict[str, Any] = {}
    known = set()
    for path, field in leaves(model):
        if is_internal(field) or _under_internal(model, path):
            continue
        known.add(path[-1])
        if path[-1] in values:
            place = tree
            for part in path[:-1]:
                place = place.setdefault(part, {})
            place[path[-1]] = values[path[-1]]
    return model(**tree, **{name: values[name] for name in values if name not in known})


def _default(model: type[Settings], path: tuple[str, ...]) -> Any:  # noqa: ANN401 - JSON
    field = model.model_fields[path[0]]
    if field.is_required():
        return None
    value = field.get_default(call_default_factory=True)
    for part in path[1:]:
        value = getattr(value, part)
    if isinstance(value, StrEnum):
        return value.value
    return list(value) if isinstance(value, tuple) else value


def _kind(annotation: Any) -> type:  # noqa: ANN401 - any annotation
    if annotation in (int, float, bool):
        return annotation  # type: ignore[no-any-return]
    origin = getattr(annotation, "__origin__", None)
    return origin if origin in (dict, list) else str


def _under_internal(model: type[Settings], path: tuple[str, ...]) -> bool:
    for part in path[:-1]:
        field = model.model_fields[part]
        if is_internal(field):
            return True
        model = field.annotation  # type: ignore[assignment]
    return False

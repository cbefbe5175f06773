"""Compiling the pipelines into what Kubeflow runs, with a lint of the result."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kfp import compiler

from chexradinet.config.parameters import WORKER_IMAGE
from chexradinet.errors import ConfigError
from pipelines.lint import lint
from pipelines.native import require_pinned, write_native
from pipelines.nightly import nightly_pipeline
from pipelines.parameters import load_documents
from pipelines.study import study_pipeline
from pipelines.training import DEFAULT_SHAPE, training_pipeline

BUILD_FOLDER = Path("build") / "pipelines"
"""Where compiled pipelines are written unless another folder is named."""


def compile_training(
    folder: Path = BUILD_FOLDER,
    max_rounds: int = DEFAULT_SHAPE.max_rounds,
    image: str = WORKER_IMAGE,
    has_arms: bool = DEFAULT_SHAPE.has_arms,
) -> Path:
    """Write `training.yaml` and, beside it, `training-native.yaml`; return the first's path.

    Args:
        folder: Made if it is not there.
        max_rounds: Guided rounds that the pipeline can run at most.
        image: Reference with a tag or digest; the default of the `worker_image` parameter.
        has_arms: Whether the control arm and the permuted arm can be trained beside each round.

    Raises:
        ConfigError: `max_rounds` is out of range, `image` has neither tag nor digest, or the
            compiled pipeline breaks a lint rule.
    """
    return _compiled(training_pipeline(max_rounds, has_arms), folder / "training.yaml", image)


def compile_nightly(folder: Path = BUILD_FOLDER, image: str = WORKER_IMAGE) -> Path:
    """Write `nightly.yaml` and, beside it, `nightly-native.yaml`; return the first's path.

    Args:
        folder: Made if it is not there.
        image: Reference with a tag or digest; the default of the `worker_image` parameter.

    Raises:
        ConfigError: `image` has neither tag nor digest, or the pipeline breaks a lint rule.
    """
    return _compiled(nightly_pipeline(), folder / "nightly.yaml", image)


def compile_study(folder: Path = BUILD_FOLDER, image: str = WORKER_IMAGE) -> Path:
    """Write `study.yaml` and, beside it, `study-native.yaml`; return the first's path.

    Args:
        folder: Made if it is not there.
        image: Reference with a tag or digest; the default of the `worker_image` parameter.

    Raises:
        ConfigError: `image` has neither tag nor digest, or the pipeline breaks a lint rule.
    """
    return _compiled(study_pipeline(), folder / "study.yaml", image)


def _compiled(pipeline: Callable[..., Any], path: Path, image: str = WORKER_IMAGE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # kfp calls its own lightweight components deprecated features of themselves.
        warnings.simplefilter("ignore", FutureWarning)
        compiler.Compiler().compile(
            pipeline, str(path), pipeline_parameters={"worker_image": require_pinned(image)}
        )
    document, platform = load_documents(path)
    violations = lint(document, platform)
    if violations:
        path.unlink()
        raise ConfigError("the compiled pipeline would run wrongly:\n" + "\n".join(violations))
    write_native(path.with_name(f"{path.stem}-native.yaml"), document, platform)
    return path

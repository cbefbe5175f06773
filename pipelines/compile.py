"""Compiling the pipelines into what Kubeflow runs, with a lint of the result."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kfp import compiler

from chexradinet.errors import ConfigError
from pipelines.lint import lint
from pipelines.parameters import load_compiled
from pipelines.training import DEFAULT_MAX_ROUNDS, training_pipeline

BUILD_FOLDER = Path("build") / "pipelines"
"""Where compiled pipelines are written unless another folder is named."""


def compile_training(folder: Path = BUILD_FOLDER, max_rounds: int = DEFAULT_MAX_ROUNDS) -> Path:
    """Write `training.yaml` for at most `max_rounds` guided rounds; return its path.

    Raises:
        ConfigError: `max_rounds` is out of range, or the compiled pipeline breaks a lint rule.
    """
    return _compiled(training_pipeline(max_rounds), folder / "training.yaml")


def _compiled(pipeline: Callable[..., Any], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # kfp calls its own lightweight components deprecated features of themselves.
        warnings.simplefilter("ignore", FutureWarning)
        compiler.Compiler().compile(pipeline, str(path))
    violations = lint(load_compiled(path))
    if violations:
        path.unlink()
        raise ConfigError("the compiled pipeline would run wrongly:\n" + "\n".join(violations))
    return path

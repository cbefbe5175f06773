"""The compiled training pipeline, made once."""

import copy
from pathlib import Path
from typing import Any

import pytest

from pipelines.compile import compile_training
from pipelines.parameters import load_compiled


@pytest.fixture(scope="session")
def compiled_training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of the training pipeline, compiled for two rounds."""
    return compile_training(tmp_path_factory.mktemp("compiled"), max_rounds=2)


@pytest.fixture(scope="session")
def _document(compiled_training: Path) -> dict[str, Any]:
    return load_compiled(compiled_training)


@pytest.fixture
def document(_document: dict[str, Any]) -> dict[str, Any]:
    """Return the pipeline specification, for a test to change as it likes."""
    return copy.deepcopy(_document)

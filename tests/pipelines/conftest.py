"""The compiled training pipeline, made once."""

import copy
from pathlib import Path
from typing import Any

import pytest

from pipelines.compile import compile_training
from pipelines.parameters import load_documents


@pytest.fixture(scope="session")
def compiled_training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of the training pipeline, compiled for two rounds."""
    return compile_training(tmp_path_factory.mktemp("compiled"), max_rounds=2)


@pytest.fixture(scope="session")
def _documents(compiled_training: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    return load_documents(compiled_training)


@pytest.fixture
def document(_documents: tuple[dict[str, Any], dict[str, Any]]) -> dict[str, Any]:
    """Return the pipeline specification, for a test to change as it likes."""
    return copy.deepcopy(_documents[0])


@pytest.fixture
def platform(_documents: tuple[dict[str, Any], dict[str, Any]]) -> dict[str, Any]:
    """Return the platform document, for a test to change as it likes."""
    return copy.deepcopy(_documents[1])

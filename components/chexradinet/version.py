"""The version of this project, as pyproject.toml has it."""

__version__ = "0.2.0"

"""Walking the objects of a rendered overlay."""

from collections.abc import Iterator
from typing import Any

Object = dict[str, Any]
NAMES = ("local", "production")
"""The overlays."""


def walk(value: object) -> Iterator[Object]:
    """Yield each mapping inside a value."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from walk(inner)


def pod_templates(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """Yield the name and pod template of each workload."""
    for thing in objects:
        spec = thing.get("spec", {})
        template = spec.get("jobTemplate", {}).get("spec", spec).get("template")
        if template and "spec" in template:
            yield f"{thing['kind']}/{thing['metadata']['name']}", template

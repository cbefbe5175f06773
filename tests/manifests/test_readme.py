"""The README's installation on kind fits what `overlays/local` asks for."""

import re
from pathlib import Path

from tests.manifests.objects import Object, pod_templates, walk

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_images_of_the_overlay_are_loaded_onto_the_nodes(
    overlays: dict[str, list[Object]],
) -> None:
    asked = {
        inner["image"]
        for _, template in pod_templates(overlays["local"])
        for inner in walk(template)
        if "image" in inner
    }
    guide = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    for text in (README, guide):
        (loaded,) = re.findall(r"^ {4}kind load docker-image (.+)$", text, re.MULTILINE)
        assert set(loaded.split()) == asked


def test_the_secrets_of_the_overlay_are_made_before_it_is_applied(
    overlays: dict[str, list[Object]],
) -> None:
    before = README.partition("kubectl apply -k manifests/overlays/local")[0]
    made = {
        (name, key)
        for name, rest in re.findall(r"-n kubeflow create secret generic (\S+) (.+)", before)
        for key in re.findall(r"--from-literal=(\w+)=", rest)
    }
    asked = {
        (inner["secretKeyRef"]["name"], inner["secretKeyRef"]["key"])
        for _, template in pod_templates(overlays["local"])
        for inner in walk(template)
        if "secretKeyRef" in inner and not inner["secretKeyRef"].get("optional")
    }
    assert asked | {("chexradinet-deidentification", "key")} == made


def test_everything_is_in_the_namespace_that_the_commands_name(
    overlays: dict[str, list[Object]],
) -> None:
    assert {thing["metadata"]["namespace"] for thing in overlays["local"]} == {"kubeflow"}
    (job,) = re.findall(r"kubectl -n kubeflow wait .* job/(\S+)", README)
    assert job in [o["metadata"]["name"] for o in overlays["local"] if o["kind"] == "Job"]

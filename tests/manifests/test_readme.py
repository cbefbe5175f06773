"""The README's installation on kind fits what `overlays/local` asks for."""

import re
from pathlib import Path

from tests.manifests.objects import Object, pod_templates, walk
from tests.manifests.test_overlays import REQUIRED_SECRETS, STORE_NAMESPACE

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", "")


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


def test_the_secrets_of_the_overlay_are_made_before_it_is_applied() -> None:
    before = README.partition("kubectl apply -k manifests/overlays/local")[0]
    (identities,) = re.findall(r"for identity in (.+); do", before)
    made = {
        (space, name.replace("$identity", identity), key)
        for spaces, name, rest in re.findall(r"-n (\S+) create secret generic (\S+) (.+)", before)
        for space in ([STORE_NAMESPACE, "kubeflow"] if spaces == "$space" else [spaces])
        for identity in identities.split()
        for key in re.findall(r"--from-literal=(\w+)=", rest)
    }
    assert "for space in chexradinet-store kubeflow; do" in before
    assert f"kubectl create namespace {STORE_NAMESPACE} " in before
    asked = {
        (STORE_NAMESPACE if space == STORE_NAMESPACE else "kubeflow", name, key)
        for space, secrets in REQUIRED_SECRETS.items()
        for name, keys in secrets.items()
        for key in keys
    }
    assert asked == made


def test_the_bucket_job_is_in_the_namespace_that_the_commands_name(
    overlays: dict[str, list[Object]],
) -> None:
    (job,) = re.findall(rf"kubectl -n {STORE_NAMESPACE} wait .* job/(\S+)", README)
    assert job in [o["metadata"]["name"] for o in overlays["local"] if o["kind"] == "Job"]

"""What a site has to fill in is found, and nothing else."""

import re
import shutil
from pathlib import Path

import typer
from typer.testing import CliRunner, Result

from pipelines.commands import register
from pipelines.placeholders import unfilled
from tests.manifests.conftest import MANIFESTS, rendered

PRODUCTION = MANIFESTS / "overlays" / "production"


def check(folder: Path) -> Result:
    """Run `chexradinet check-manifests`."""
    app = typer.Typer()
    register(app)
    return CliRunner().invoke(app, ["check-manifests", str(folder)])


def test_every_placeholder_of_the_shipped_overlay_is_found_by_file_and_line() -> None:
    found = [(str(p.file.relative_to(PRODUCTION)), p.value) for p in unfilled(PRODUCTION)]
    zeros = "sha256:" + "0" * 64
    assert found == [
        *[("identities/externalsecrets.yaml", "site-vault")] * 5,
        ("kustomization.yaml", "registry.example.org"),
        ("kustomization.yaml", zeros),
        ("kustomization.yaml", "registry.example.org"),
        ("kustomization.yaml", zeros),
        ("run/archive-networkpolicy.yaml", "192.0.2.4/32"),
        ("run/chexradinet-prometheusrule.yaml", "git.example.org"),
        ("run/deidentification-externalsecret.yaml", "site-vault"),
        ("run/kfp-launcher-configmap.yaml", "minio.example.org:443"),
        ("run/pacs-networkpolicy.yaml", "192.0.2.3/32"),
        ("run/run-configmap.yaml", "minio.example.org"),
        ("run/run-networkpolicy.yaml", "192.0.2.2/32"),
        ("run/store-networkpolicy.yaml", "192.0.2.1/32"),
        ("storage/buckets-networkpolicy.yaml", "192.0.2.1/32"),
        ("storage/object-store-root-externalsecret.yaml", "site-vault"),
    ]
    placeholder = unfilled(PRODUCTION)[-1]
    lines = placeholder.file.read_text(encoding="utf-8").splitlines()
    assert placeholder.value in lines[placeholder.line - 1]


def test_the_local_overlay_and_what_overlays_are_made_of_need_nothing() -> None:
    for folder in ("base", "options", "overlays/local"):
        found = [one for one in unfilled(MANIFESTS / folder) if "orthanc" not in str(one.file)]
        assert found == []


def test_an_overlay_that_is_filled_in_renders_without_reserved_values(
    tmp_path: Path,
) -> None:
    manifests = Path(shutil.copytree(MANIFESTS, tmp_path / "manifests"))
    overlay = manifests / "overlays" / "production"
    listed = check(overlay)
    assert listed.exit_code == 1
    assert "run-networkpolicy.yaml:6: 192.0.2.2/32: fill in the address" in listed.output
    for placeholder in unfilled(overlay):
        text = placeholder.file.read_text(encoding="utf-8")
        filled = {"1": "10.1.2.3/32", "s": "sha256:" + "a" * 64}.get(
            placeholder.value[0], "host.lan"
        )
        placeholder.file.write_text(text.replace(placeholder.value, filled), encoding="utf-8")
    assert check(overlay).exit_code == 0
    assert not re.search(r"192\.0\.2\.|example\.org|0{64}", str(rendered(overlay)))


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert check(tmp_path / "none").exit_code == 2

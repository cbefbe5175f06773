"""The champion's pointer, what is refused of it, and back to an earlier champion."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from chexradinet.config import Backbone, NetworkConfig, PreprocessingConfig
from chexradinet.errors import ArtifactError, ConfigError
from chexradinet.model import BundleInfo, verify_bundle
from chexradinet.model.bundle import save_bundle
from chexradinet.model.resnet import build_network
from chexradinet.registry import fetch_bundle, fetch_champion, read_pointer, roll_back


def published(models: Path, seed: int) -> str:
    """Write a bundle under its digest, as a publication does; return the digest."""
    network = build_network(
        NetworkConfig(backbone=Backbone.RESNET18_NARROW, map_stride=32), 1, seed
    )
    preprocessing = PreprocessingConfig(image_side=32)
    info = BundleInfo(
        network=network.config,
        findings=("Mass",),
        preprocessing=preprocessing,
        preprocessing_digest=preprocessing.digest(),
        round=seed,
    )
    save_bundle(models / "new", info, network, None)
    digest = verify_bundle(models / "new")
    (models / "new").rename(models / digest)
    return digest


@pytest.fixture
def digests(tmp_path: Path) -> tuple[str, str]:
    """Publish two models under `tmp_path`; return the older and the champion."""
    older, champion = published(tmp_path, 0), published(tmp_path, 1)
    history = [{"digest": older, "reason": "a"}, {"digest": champion, "reason": "b"}]
    pointer: dict[str, Any] = {"schema": 1, "kind": "champion", "digest": champion}
    (tmp_path / "champion.json").write_text(json.dumps(pointer | {"history": history}))
    return older, champion


def test_the_older_model_is_the_champion_again_and_the_history_tells_it(
    tmp_path: Path, digests: tuple[str, str]
) -> None:
    older, champion = digests
    assert roll_back(str(tmp_path), older[:8]) == older
    assert fetch_champion(str(tmp_path), tmp_path / "fetched") == older
    history = read_pointer(str(tmp_path))[0]["history"]
    assert [entry["digest"] for entry in history] == [older, champion, older]
    assert champion[:12] in history[-1]["reason"]
    assert (tmp_path / champion).is_dir()


def test_rolling_back_to_the_champion_changes_nothing(
    tmp_path: Path, digests: tuple[str, str]
) -> None:
    before = (tmp_path / "champion.json").read_bytes()
    assert roll_back(str(tmp_path), digests[1]) == digests[1]
    assert (tmp_path / "champion.json").read_bytes() == before


def test_it_can_be_taken_back(tmp_path: Path, digests: tuple[str, str]) -> None:
    older, champion = digests
    roll_back(str(tmp_path), older)
    assert roll_back(str(tmp_path), champion) == champion


@pytest.mark.parametrize("digest", ["", "0" * 64, "abc"])
def test_an_unknown_or_short_digest_lists_what_there_is(
    tmp_path: Path, digests: tuple[str, str], digest: str
) -> None:
    with pytest.raises(ConfigError, match=digests[0][:12]):
        roll_back(str(tmp_path), digest)


def test_nothing_published_yet_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none"):
        roll_back(str(tmp_path), "0" * 64)


def test_a_changed_bundle_does_not_become_champion(
    tmp_path: Path, digests: tuple[str, str]
) -> None:
    weights = tmp_path / digests[0] / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    with pytest.raises(ArtifactError):
        roll_back(str(tmp_path), digests[0])
    assert read_pointer(str(tmp_path))[0]["digest"] == digests[1]


def test_a_bundle_under_anothers_name_does_not_become_champion(
    tmp_path: Path, digests: tuple[str, str]
) -> None:
    (tmp_path / digests[0]).rename(tmp_path / "aside")
    (tmp_path / digests[1]).rename(tmp_path / digests[0])
    with pytest.raises(ArtifactError, match="has digest"):
        roll_back(str(tmp_path), digests[0])


FAR = "../../../../etc"
GOOD = "0" * 64


@pytest.mark.parametrize(
    ("document", "fault"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", "of schema"),
        ({"schema": 2}, "of schema '2'"),
        ({"digest": FAR}, "its 'digest' is not a SHA-256"),
        ({"digest": f"{GOOD}/.."}, "its 'digest' is not a SHA-256"),
        ({"digest": f"{GOOD}\n"}, "its 'digest' is not a SHA-256"),
        ({"digest": GOOD.replace("0", "A")}, "its 'digest' is not a SHA-256"),
        ({"digest": 7}, "its 'digest' is not a SHA-256"),
        ({"digest": None}, "its 'digest' is not a SHA-256"),
        ({"history": None}, "'history' is not a list"),
        ({"history": {}}, "'history' is not a list"),
        ({"history": [{"digest": GOOD}, {"digest": FAR}]}, "history entry 2's 'digest'"),
        ({"history": ["x"]}, "history entry 1's 'digest'"),
        ({"history": [{}]}, "history entry 1's 'digest'"),
    ],
)
def test_a_malformed_pointer_is_one_error_that_names_it_and_says_what_to_do(
    tmp_path: Path, document: bytes | dict[str, Any], fault: str
) -> None:
    sound = {"schema": 1, "kind": "champion", "digest": GOOD, "history": []}
    data = document if isinstance(document, bytes) else json.dumps(sound | document).encode()
    (tmp_path / "champion.json").write_bytes(data)
    models = str(tmp_path)
    for use in (
        partial(fetch_champion, models, tmp_path / "out"),
        partial(roll_back, models, GOOD),
    ):
        with pytest.raises(ArtifactError, match=r"champion\.json names no champion") as caught:
            use()
        assert fault in str(caught.value)
        assert "bring back its last version" in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("digest", [FAR, "..", "", f"{GOOD}/..", f"{GOOD}/"])
def test_a_digest_that_is_a_path_is_not_fetched(tmp_path: Path, digest: str) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "beside").write_text("x")
    with pytest.raises(ArtifactError, match="is not the digest of a bundle"):
        fetch_bundle(str(tmp_path / "models"), digest, tmp_path / "out")
    assert not (tmp_path / "out").exists()

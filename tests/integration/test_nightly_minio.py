"""The nightly run on MinIO: as on a directory, and when the server is lost in between."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chexradinet import store
from chexradinet.config import StoreConfig
from chexradinet.errors import StoreUnavailableError
from chexradinet.ingest.decoding import decode_in_order
from chexradinet.nightly import Excluded, XRay, score
from chexradinet.nightly.ledger import PlannedImage
from chexradinet.nightly.read import Reading, read_xray
from chexradinet.store import upload_directory
from tests.nightly_world import FINDINGS, World, decode_in_this_process, make_world


def bucket_world(root: Path, bucket_uri: str, num_png: int) -> World:
    """Make a world and copy it into a bucket."""
    world = make_world(root, num_png=num_png)
    for name in ("inbox", "models"):
        upload_directory(world.root / name, f"{bucket_uri}/{name}")
    return World(world.root, f"{bucket_uri}/results", bucket_uri)


def test_a_night_in_a_bucket_scores_each_x_ray_once(s3_uri: str, tmp_path: Path) -> None:
    world = bucket_world(tmp_path / "world", s3_uri, num_png=6)
    _, night = world.run()
    assert night is not None
    assert night.num_scored == 6
    assert world.run()[0].status == "nothing_new"
    assert len(world.rows("part-")) == 6 * len(FINDINGS)


def test_a_server_lost_in_mid_run_fails_the_run_and_the_next_one_goes_on(
    start_minio: Callable[[], SimpleNamespace],
    use_server: Callable[[SimpleNamespace], None],
    new_bucket: Callable[[SimpleNamespace], str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    server = start_minio()
    use_server(server)
    world = bucket_world(tmp_path / "world", f"s3://{new_bucket(server)}", num_png=12)
    _use_short_retries(monkeypatch)
    calls: list[object] = []

    def losing(reading: Reading, image: PlannedImage) -> XRay | Excluded:
        calls.append(image)
        if len(calls) == 8:
            server.kill()
        return read_xray(reading, image)

    decode_in_this_process(monkeypatch)
    monkeypatch.setattr(score, "read_xray", losing)
    with pytest.raises(StoreUnavailableError):
        world.run()
    server.start()
    outcome, night = world.run()
    assert night is not None
    assert (outcome.status, night.num_scored) == ("continued", 12)
    assert len(world.rows("part-")) == 12 * len(FINDINGS)
    assert len(calls) == 8 + 7  # the shard that was done was not done again
    server.kill()


def _use_short_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    short = StoreConfig(retry_total_s=1.0, connect_timeout_s=1.0)
    for name in ("open_store", "open_object"):
        monkeypatch.setattr(getattr(store, name), "__defaults__", (short,))


def test_a_server_that_is_away_for_a_moment_is_waited_for(
    start_minio: Callable[[], SimpleNamespace],
    use_server: Callable[[SimpleNamespace], None],
    new_bucket: Callable[[SimpleNamespace], str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    server = start_minio()
    use_server(server)
    world = bucket_world(tmp_path / "world", f"s3://{new_bucket(server)}", num_png=6)
    comes_back = threading.Timer(0.5, server.start)

    def away(*given: Any) -> Iterator[Any]:  # noqa: ANN401 - as it is called
        server.kill()
        comes_back.start()
        return decode_in_order(*given)

    monkeypatch.setattr(score, "decode_in_order", away)
    _, night = world.run(shard_size=6)
    comes_back.join()
    assert night is not None
    assert night.num_scored == 6
    server.kill()

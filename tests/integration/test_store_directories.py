"""Whole directories to and from both stores."""

from pathlib import Path

import pytest

from chexradinet.errors import StoreIntegrityError, StoreNotFoundError
from chexradinet.store import download_directory, open_store, upload_directory
from chexradinet.store.protocol import ObjectStore


def test_directory_goes_there_and_back(folder_uri: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub folder").mkdir(parents=True)
    (source / "dataset.json").write_text("{}")
    (source / "sub folder" / "images-00000.npy").write_bytes(b"\0" * 1000)
    (source / "manifest.parquet").write_bytes(b"PAR1")
    upload_directory(source, folder_uri)
    download_directory(folder_uri, tmp_path / "target")
    files = sorted(path for path in (tmp_path / "target").rglob("*") if path.is_file())
    assert {str(path.relative_to(tmp_path / "target")): path.read_bytes() for path in files} == {
        "dataset.json": b"{}",
        "manifest.parquet": b"PAR1",
        "sub folder/images-00000.npy": b"\0" * 1000,
    }


def test_download_of_nothing_is_an_error_and_leaves_nothing(
    folder_uri: str, tmp_path: Path
) -> None:
    with pytest.raises(StoreNotFoundError, match="holds nothing"):
        download_directory(folder_uri, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_half_uploaded_directory_has_no_head(
    folder_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("bundle.json", "weights.safetensors"):
        (source / name).write_text("first")
    upload_directory(source, folder_uri)
    store, prefix = open_store(folder_uri)
    put_file = type(store).put_file

    def fail_on_weights(self: ObjectStore, key: str, path: Path) -> str:
        if key.endswith(".safetensors"):
            raise StoreIntegrityError("planted")
        return put_file(self, key, path)

    monkeypatch.setattr(type(store), "put_file", fail_on_weights)
    with pytest.raises(StoreIntegrityError, match="planted"):
        upload_directory(source, folder_uri)
    assert [info.key for info in store.list(prefix)] == [f"{prefix}weights.safetensors"]

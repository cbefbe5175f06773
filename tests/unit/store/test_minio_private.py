"""The installed minio client still has the private parts that conditional writes need."""

import inspect
import re
from pathlib import Path

import minio
import pytest
from minio import Minio
from minio.error import InvalidResponseError, MinioAdminException

from chexradinet.store import minio_private

USED = {
    "_put_object": ["bucket_name", "object_name", "data", "headers"],
    "_create_multipart_upload": ["bucket_name", "object_name", "headers"],
    "_upload_part": [
        "bucket_name", "object_name", "data", "headers", "upload_id", "part_number",
    ],
    "_complete_multipart_upload": ["bucket_name", "object_name", "upload_id", "parts"],
    "_abort_multipart_upload": ["bucket_name", "object_name", "upload_id"],
}  # fmt: skip
SOURCE = Path(minio_private.__file__).read_text(encoding="utf-8")
STORE = Path(minio_private.__file__).parent


@pytest.mark.parametrize("name", USED)
def test_the_client_has_each_private_method_with_its_arguments(name: str) -> None:
    method = getattr(Minio, name, None)
    advice = f"minio {minio.__version__} moved Minio.{name}: adapt store/minio_private.py to it"
    assert method is not None, advice
    found = list(inspect.signature(method).parameters)[1:]
    assert found[: len(USED[name])] == USED[name], f"{advice}; its arguments are {found}"


def test_errors_still_hold_their_status() -> None:
    advice = f"minio {minio.__version__} moved the status: adapt minio_private.status_of"
    for error in (InvalidResponseError(503, "text/html", "x"), MinioAdminException("503", "x")):
        assert hasattr(error, "_code"), advice
        assert minio_private.status_of(error) == 503, advice


def test_no_other_module_uses_a_private_part_of_the_client() -> None:
    assert set(re.findall(r"client\.(_[a-z]\w+)", SOURCE)) == set(USED)
    assert len(SOURCE.splitlines()) <= 60
    for path in STORE.glob("*.py"):
        if path.name != "minio_private.py":
            text = path.read_text(encoding="utf-8")
            assert not re.findall(r"(?:client|administrator|error)\._[a-z]\w+", text), path

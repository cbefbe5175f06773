"""What DICOM results cost: processor milliseconds per X-ray of 2048x2048, and highdicom's share.

`python -m benchmarks.dicom_results` writes report and capture of an X-ray with 14 findings, two of
them flagged with 102 features each. "decode" is what a night adds: it decodes the original again
for the picture. "highdicom" is the report's content as a tree of data sets, as it was written
before: the tests compare the bytes.
"""

import io
import time
from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np
import pydicom
from pydicom import uid

from chexradinet.config import DicomConfig
from chexradinet.dicom.reader import read_radiograph
from chexradinet.dicom_results import ScoredCase, ScoredFinding, ScoringModel
from chexradinet.dicom_results.report import report_content
from chexradinet.dicom_results.results import case_picture, write_dicom_results
from chexradinet.dicom_results.source import read_source
from chexradinet.findings import NIH_FINDINGS
from chexradinet.phantom import draw_phantom, encode_radiograph
from chexradinet.records import Box, Geometry
from chexradinet.regions import FEATURE_NAMES
from tests.unit.dicom_results.highdicom_report import content_by_highdicom

SIDE, MODEL_SIDE, REPEATS = 2048, 224, 10


def milliseconds(call: Callable[[], object]) -> float:
    """Return the processor time of a call, the least of some."""
    spent = []
    for _ in range(REPEATS):
        started = time.process_time()
        call()
        spent.append(time.process_time() - started)
    return 1000 * min(spent)


def scored_case(pixels: np.ndarray) -> ScoredCase:
    """Return an X-ray with two flagged findings."""
    findings = tuple(
        ScoredFinding(
            name=name, probability=0.1 + 0.05 * place, threshold=0.7,
            flagged=0.1 + 0.05 * place >= 0.7, calibrated=True, region=Box(100, 100, 600, 700),
            radiomics=dict.fromkeys(FEATURE_NAMES, 1 / 3) if 0.1 + 0.05 * place >= 0.7 else {},
        )
        for place, name in enumerate(NIH_FINDINGS)
    )  # fmt: skip
    scale = SIDE / MODEL_SIDE
    return ScoredCase(
        pixels=pixels,
        geometry=Geometry(
            original_height=SIDE, original_width=SIDE, row_scale=scale, column_scale=scale
        ),
        model_side_px=MODEL_SIDE,
        heatmap=np.random.default_rng(0).random((14, 14)).astype(np.float32),
        heatmap_finding=findings[-1].name,
        findings=findings,
        model=ScoringModel(
            bundle_digest="ab" * 32, preprocessing_digest="cd" * 32, round=1, software_version="0"
        ),
        content_at=datetime(2026, 1, 2, tzinfo=UTC),
    )


def main() -> None:
    """Print a line per part."""
    pixels = draw_phantom(3, SIDE, 3, 0.0).pixels
    content = encode_radiograph(pixels.astype(np.uint16), uid.ExplicitVRLittleEndian, {})
    header = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True)
    case, source = scored_case(pixels), read_source(header)
    parts: dict[str, Callable[[], object]] = {
        "all, as written": lambda: write_dicom_results(header, case),
        "of it, the report's content": lambda: report_content(case, source),
        "of it, drawing the picture": lambda: case_picture(case),
        "decode": lambda: read_radiograph(content, DicomConfig()),
        "highdicom": lambda: content_by_highdicom(case, source),
    }
    for name, call in parts.items():
        print(f"{name}: {milliseconds(call):.1f} ms")


if __name__ == "__main__":
    main()

"""Phantom DICOM files read back as the phantoms they were made of."""

from pathlib import Path

import numpy as np

from chexradinet.config import DicomConfig, QualityConfig
from chexradinet.dataset.quality import gate
from chexradinet.dicom.reader import read_radiograph
from chexradinet.phantom import iter_phantom
from chexradinet.phantom.dicom import SYNTAXES, write_phantom_inbox


def test_files_hold_the_phantoms_in_every_syntax_and_pass_the_gate(tmp_path: Path) -> None:
    write_phantom_inbox(tmp_path, 2 * len(SYNTAXES), 128, seed=11)
    drawn = list(iter_phantom(2 * len(SYNTAXES), 128, seed=11))
    for index, path in enumerate(sorted(tmp_path.iterdir())):
        read = read_radiograph(path.read_bytes(), DicomConfig())
        difference = np.abs(read.pixels.astype(int) - drawn[index].pixels)
        assert difference.max() <= 1
        gate(read.header, read.pixels, QualityConfig())


def test_equal_arguments_give_equal_files_and_other_seeds_other_identifiers(tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        write_phantom_inbox(tmp_path / name, 2, 64, seed)
    first, second, third = (
        (tmp_path / name / "000001.dcm").read_bytes() for name in ("one", "two", "three")
    )
    assert first == second
    assert first != third

"""Training and scoring hosts have no pyradiomics: only measuring may need it."""

import subprocess
import sys

SCRIPT = """
import sys
for name in ("radiomics", "SimpleITK", "pydicom", "torch", "kfp"):
    sys.modules[name] = None
from chexradinet.regions import extract, radiomics, read_features
"""


def test_all_but_measuring_works_without_pyradiomics() -> None:
    subprocess.run([sys.executable, "-c", SCRIPT], check=True)

"""Make the pictures of the README from a demo's reports, with Chromium.

python docs/images/make.py <evaluation>/report.html <night>/report.html
"""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

_NAMES = ("evaluation", "nightly")
_WINDOW = (1180, 1500)
_SHOWN = (885, 1125)
_COLORS = 96


def main() -> None:
    """Write `evaluation.png` and `nightly.png` beside this file."""
    width, height = _WINDOW
    for name, page in zip(_NAMES, sys.argv[1:], strict=True):
        with TemporaryDirectory() as folder:
            picture = Path(folder) / "page.png"
            command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu"]
            command += ["--hide-scrollbars", f"--window-size={width},{height}"]
            command += [f"--user-data-dir={folder}/profile", f"--screenshot={picture}"]
            subprocess.run([*command, Path(page).resolve().as_uri()], check=True)
            with Image.open(picture) as shown:
                small = shown.convert("RGB").resize(_SHOWN, Image.Resampling.LANCZOS)
                few = small.quantize(_COLORS, dither=Image.Dither.NONE)
                few.save(Path(__file__).with_name(f"{name}.png"), optimize=True)


if __name__ == "__main__":
    main()

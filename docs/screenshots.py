"""The screenshots of docs/dashboard.md: the first run of `lightning-lyapunov demo` in a browser, Chromium.

lightning-lyapunov demo --directory /tmp/demo && python docs/screenshots.py /tmp/demo
"""

import argparse
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).parent
WIDTH, HEIGHT, SHOWN = 1200, 1060, 900
"""Pixels of the window, and width of the pictures."""


def shoot(address: str, name: str, profile: str) -> None:
    """Open a page and keep what there is to see as a picture of 64 colours."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    picture = DOCS / f"dashboard-{name}.png"
    subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}",
            "--virtual-time-budget=20000", f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={picture}", address,
        ],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    with Image.open(picture) as whole:
        small = whole.convert("RGB").resize((SHOWN, SHOWN * HEIGHT // WIDTH), Image.Resampling.LANCZOS)
    small.quantize(64, Image.Quantize.MEDIANCUT, kmeans=3).save(picture, optimize=True)


def main() -> None:
    """TensorBoard's tabs, and the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="that of the demo")
    directory = parser.parse_args().directory / "demo" / "as-made"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    board = [sys.executable, "-m", "tensorboard.main", "--host", "127.0.0.1", "--port", str(port)]
    quietly = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with (
        tempfile.TemporaryDirectory() as profile,
        subprocess.Popen([*board, "--logdir", directory], **quietly) as process,  # type: ignore[call-overload]
    ):
        try:
            for _ in range(60):
                time.sleep(1)
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/data/plugin/images/tags") as answer:
                        if b"lyapunov_figures" in answer.read():
                            break
                except OSError:
                    continue
            shoot(f"http://127.0.0.1:{port}/#images", "images", profile)
            shoot(f"http://127.0.0.1:{port}/#custom_scalars", "scalars", profile)
            report = max(directory.rglob("lyapunov.html"), key=lambda path: path.stat().st_mtime)
            shoot(report.resolve().as_uri(), "report", profile)
        finally:
            process.terminate()


if __name__ == "__main__":
    main()

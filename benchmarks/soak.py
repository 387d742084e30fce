"""Memory of a long run: ``vision3d depth`` on many small pictures, its resident memory read from outside.

Says how the last third compares with the second (the first warms up) and fails if it is more than ``--tolerance``
apart. Linux only, for it reads /proc.

    python benchmarks/soak.py --images 300 --json soak.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image


def pictures(folder: Path, count: int) -> None:
    """Small pictures of three sizes, all different."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        size = [(96, 72), (72, 96), (80, 80)][i % 3]
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(folder / f"{i:04d}.png")


def resident(pid: int) -> int:
    """Resident bytes of a process, 0 when it is over."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def watch(photos: Path, out: Path, count: int) -> list[tuple[int, int]]:
    """Runs the verb; (results finished, resident bytes) about ten times a second."""
    words = ["depth", str(photos), "--out", str(out), "--quiet", "--weights", "mini"]
    run = subprocess.Popen([sys.executable, "-m", "vision3d", *words])
    samples: list[tuple[int, int]] = []
    while run.poll() is None:
        done = sum(1 for _ in out.glob("[!.]*/result.json")) if out.is_dir() else 0
        if (bytes_now := resident(run.pid)) and done:
            samples.append((done, bytes_now))
        time.sleep(0.1)
    if run.returncode or len(list(out.glob("*/result.json"))) != count:
        raise SystemExit(f"the run failed with exit code {run.returncode}")
    return samples


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--tolerance", type=float, default=0.03)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    count = arguments.images
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        pictures(Path(temporary) / "photos", count)
        samples = watch(Path(temporary) / "photos", Path(temporary) / "out", count)
    thirds = [
        [size for done, size in samples if count * i / 3 <= done < count * (i + 1) / 3] for i in range(3)
    ]
    means = [statistics.fmean(third) for third in thirds]
    peaks = [max(third) for third in thirds]
    growth = means[2] / means[1] - 1
    report = {
        "images": count,
        "seconds": round(time.monotonic() - started, 1),
        "mean_bytes_of_thirds": [round(mean) for mean in means],
        "peak_bytes_of_thirds": peaks,
        "last_over_second": round(growth, 4),
    }
    print(f"{count} images in {report['seconds']} s")
    for name, mean, peak in zip(("first", "second", "last"), means, peaks, strict=True):
        print(f"  {name} third: {mean / 1e6:.1f} MB on average, {peak / 1e6:.1f} MB at most")
    print(f"  last third against the second: {growth:+.2%}")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return int(abs(growth) > arguments.tolerance)


if __name__ == "__main__":
    sys.exit(main())

"""What a run was made with: versions, commit, machine. For `manifest.json` and `ponder doctor`."""

from __future__ import annotations

import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ponder import threads

PACKAGES = ("ponder", "numpy", "torch", "safetensors", "tokenizers", "transformers", "math-verify", "reasoning-gym")
"""Packages whose version may change a result."""


def versions() -> dict[str, str]:
    """Version of Python and of each installed package of `PACKAGES`."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def commit(where: Path | None = None) -> dict[str, Any] | None:
    """`{"commit", "clean"}` of the git checkout that ponder's source is tracked in; None outside of one."""
    source = where or Path(__file__).resolve()
    try:
        if _git(source.parent, "ls-files", "--error-unmatch", source.name) is None:
            return None
        head, status = _git(source.parent, "rev-parse", "HEAD"), _git(source.parent, "status", "--porcelain")
    except (OSError, subprocess.TimeoutExpired):
        return None
    if head is None or status is None:
        return None
    return {"commit": head.strip(), "clean": not status.strip()}


def _git(folder: Path, *words: str) -> str | None:
    # Without optional locks `git status` never blocks a commit that runs at the same time.
    command = ["git", "--no-optional-locks", "-C", str(folder), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    return done.stdout if done.returncode == 0 else None


@cache
def cpu_model() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    if sys.platform == "darwin":
        try:
            return subprocess.run(
                ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, timeout=5, check=True
            ).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            pass
    return platform.processor() or platform.machine()


def hardware() -> dict[str, Any]:
    """Processor, usable cores, memory in bytes, threads; torch's threads and the GPUs if it is already loaded."""
    import psutil

    found: dict[str, Any] = {
        "cpu": cpu_model(),
        "cores": threads.cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }
    if (asked := threads.asked()) is not None:
        found["threads"] = asked
    torch = sys.modules.get("torch")
    if torch is not None:
        found["torch_threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            found["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return found


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far, in bytes."""
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return int(getattr(psutil.Process().memory_info(), "peak_wset", 0))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

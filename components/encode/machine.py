"""What this machine offers for encoding, and how it is divided among worker processes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from components.dataset.errors import UserError
from components.encode.settings import Device, EncodeSettings, Precision

#: Any of these is there where a process can reach an NVIDIA GPU; torch is asked only then, its import is slow.
DRIVERS = (Path("/dev/nvidiactl"), Path("/proc/driver/nvidia/version"), Path("/dev/dxg"))
QUOTA = Path("/sys/fs/cgroup/cpu.max")
#: Fewer texts than this are not worth another process.
TEXTS_PER_PROCESS = 128
CPU_TOKENS, GPU_TOKENS = 2_048, 65_536


@dataclass(frozen=True)
class Plan:
    """How the texts of a run are encoded: on the CPU, or with one process for each GPU."""

    device: Device
    precision: Precision
    processes: int
    threads: int
    batch_tokens: int

    @property
    def gpus(self) -> int:
        """GPUs in use."""
        return self.processes if self.device == "cuda" else 0


def plan(settings: EncodeSettings, texts: int) -> Plan:
    """Divide this machine for a number of texts.

    Raises:
        UserError: a GPU is asked for and there is none, or a precision that the device does not have.
    """
    device, precision = resolve(settings)
    if device == "cuda":
        processes, threads = min(settings.processes or gpus(), gpus(), _worth(texts)), 1
    else:
        processes = min(settings.processes or cores(), _worth(texts))
        # One process for few texts takes all the cores; many processes take one each.
        threads = max(1, cores() // processes)
    tokens = settings.batch_tokens or (GPU_TOKENS if device == "cuda" else CPU_TOKENS)
    return Plan(device, precision, processes, threads, tokens)


def _worth(texts: int) -> int:
    return max(1, -(-texts // TEXTS_PER_PROCESS))


def resolve(settings: EncodeSettings) -> tuple[Device, Precision]:
    """Device and precision where the settings leave them open.

    Raises:
        UserError: a GPU is asked for and there is none, or a precision that the device does not have.
    """
    device: Device = "cpu" if settings.precision == "int8" or settings.device == "cpu" or gpus() == 0 else "cuda"
    if settings.device == "cuda" and device == "cpu":
        raise UserError(
            "encode.device: no GPU that torch can use; write device: auto or cpu, or install its CUDA build"
        )
    if settings.precision == "bf16" and device == "cpu":
        raise UserError("encode.precision: bf16 needs a GPU and there is none; write fp32, int8 or auto")
    if settings.precision == "auto":
        return device, "bf16" if device == "cuda" else "fp32"
    return device, settings.precision


def gpus() -> int:
    """GPUs that torch can use."""
    if not any(path.exists() for path in DRIVERS):
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def cores() -> int:
    """Cores this process may use: its affinity, the container's quota, and OMP_NUM_THREADS where that is set."""
    limits = [len(os.sched_getaffinity(0))]
    if QUOTA.is_file():
        quota, period = QUOTA.read_text().split()
        if quota != "max":
            limits.append(max(1, int(quota) // int(period)))
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit():
        limits.append(max(1, int(asked)))
    return min(limits)

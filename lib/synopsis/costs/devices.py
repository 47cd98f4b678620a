"""What a device can reach: one table for `synopsis plan`, the utilisation of training and the floor of the benchmark.

mfu(flops_per_second, torch.cuda.get_device_name(), processes=8)          # share of the peak
rates = rates_of("NVIDIA H100 80GB HBM3", "float32") or measured_rates(torch.device("cpu"), "float32")
floor_seconds(flops, bytes_read, rates)                                   # no faster than this
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Device:
    """Peak rates without sparsity (FLOP/s), bytes of memory and bytes a second that it reads, of a vendor's data sheet.

    None: not stated there.
    """

    bfloat16: float
    float32: float | None
    memory: float
    bandwidth: float

    def peak(self, dtype: str) -> float | None:
        """FLOP/s in `bfloat16`, `float16` or `float32`."""
        return {"bfloat16": self.bfloat16, "float16": self.bfloat16, "float32": self.float32}.get(dtype)


DEVICES = {
    "H100 NVL": Device(835e12, 60e12, 94e9, 3.9e12),
    "H100 PCIe": Device(756e12, 51e12, 80e9, 2.0e12),
    "H100": Device(989e12, 67e12, 80e9, 3.35e12),
    "H200": Device(989e12, 67e12, 141e9, 4.8e12),
    "GH200": Device(990e12, 67e12, 96e9, 4.0e12),
    "B200": Device(2250e12, None, 180e9, 8.0e12),
    "A100-SXM4-40GB": Device(312e12, 19.5e12, 40e9, 1.555e12),
    "A100-PCIE-40GB": Device(312e12, 19.5e12, 40e9, 1.555e12),
    "A100": Device(312e12, 19.5e12, 80e9, 2.039e12),
    "L40S": Device(362e12, 91.6e12, 48e9, 0.864e12),
    "L4": Device(121e12, 30.3e12, 24e9, 0.3e12),
    "A10": Device(125e12, 31.2e12, 24e9, 0.6e12),
    "RTX A6000": Device(154.8e12, 38.7e12, 48e9, 0.768e12),
    "RTX 4090": Device(165.2e12, 82.6e12, 24e9, 1.008e12),
    "RTX 3090": Device(71e12, 35.6e12, 24e9, 0.936e12),
    "MI300X": Device(1307e12, 163.4e12, 192e9, 5.3e12),
}
"""Name -> device; the first whose name is a word of the driver's name is taken, so variants stand first."""


def find_device(name: str) -> Device | None:
    """The device of a driver's name such as `NVIDIA H100 80GB HBM3`; None when it is not known (CPUs are not)."""
    for known, device in DEVICES.items():
        if re.search(rf"(?<![A-Z0-9]){re.escape(known.upper())}(?![A-Z0-9])", name.upper()):
            return device
    return None


def mfu(flops_per_second: float, device_name: str, processes: int = 1, dtype: str = "bfloat16") -> float | None:
    """Model FLOPs utilisation of `processes` devices, as a share of 1; None where their peak is not known."""
    device = find_device(device_name)
    peak = None if device is None else device.peak(dtype)
    return None if peak is None else flops_per_second / (peak * processes)


@dataclass(frozen=True)
class Rates:
    """FLOP/s and bytes a second, as the vendor states them or as they were measured."""

    flops: float
    bandwidth: float
    measured: bool = False


def rates_of(device_name: str, dtype: str) -> Rates | None:
    """By the table of devices; None for a device or a dtype that it does not hold."""
    device = find_device(device_name)
    peak = None if device is None else device.peak(dtype)
    return None if device is None or peak is None else Rates(peak, device.bandwidth)


def measured_rates(device: Any, dtype: str) -> Rates:
    """The best of a few products of square matrices, and of a few copies, which read and write each byte."""
    import torch

    gpu = torch.device(device).type == "cuda"
    width, length, kind = (8192, 2**30, getattr(torch, dtype)) if gpu else (512, 2**27, getattr(torch, dtype))
    matrix = torch.ones(width, width, device=device, dtype=kind)
    source = torch.ones(length, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)

    def best(call: Callable[[], Any]) -> float:
        seconds = []
        for _ in range(4):  # the first one warms up
            start = time.perf_counter()
            call()
            if gpu:
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - start)
        return min(seconds[1:])

    return Rates(2 * width**3 / best(lambda: matrix @ matrix), 2 * length / best(lambda: target.copy_(source)), True)


def floor_seconds(flops: float, bytes_read: float, rates: Rates) -> float:
    """Seconds that no program can beat: the longer of computing at the peak and reading at the full bandwidth."""
    return max(flops / rates.flops, bytes_read / rates.bandwidth)

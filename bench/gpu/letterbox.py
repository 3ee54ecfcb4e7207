"""Compare the letterbox on the GPU with the host's, bit for bit, and time both from frame to input on the GPU."""

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from edgekd.agent.runtimes.cuda import PyCuda
from edgekd.agent.runtimes.gpu_letterbox import GpuLetterbox
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.detection.types import Preprocess

SIZES = [(1080, 1920), (720, 1280), (480, 640), (2160, 3840), (300, 200), (64, 64)]
RUNS = 200
FORMS = {
    "float32": Preprocess(640, 640),
    "float32, mean and std": Preprocess(640, 640, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "uint8": Preprocess(640, 640, input="uint8"),
    "uint8 as float32": Preprocess(640, 640, input="uint8", float_bytes=True),
    "nv12": Preprocess(640, 640, input="nv12"),
}


def median_ms(work: Callable[[], object]) -> float:
    times = []
    for _ in range(RUNS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return 1000 * float(np.median(times[RUNS // 10 :]))


def compared(gpu: PyCuda, preprocess: Preprocess, size: tuple[int, int]) -> tuple[int, float, float]:
    """Return the number of differing values, and the milliseconds of the GPU's and of the host's letterbox."""
    on_gpu = GpuLetterbox(gpu, preprocess, 1)
    shape = (size[0] * 3 // 2, size[1]) if preprocess.input == "nv12" else (*size, 3)
    frame = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    expected, _ = letterbox(frame, preprocess)
    found, address = gpu.pinned(expected.shape, expected.dtype), gpu.allocate(expected.nbytes)

    def by_gpu() -> None:
        on_gpu.enqueue(frame, 0, address)
        gpu.wait()

    def by_host() -> None:
        np.copyto(found, letterbox(frame, preprocess)[0])
        gpu.upload(address, found)
        gpu.wait()

    by_gpu()
    gpu.download(found, address)
    gpu.wait()
    differing = int(np.count_nonzero(found != expected))
    return differing, median_ms(by_gpu), median_ms(by_host)


def main() -> None:
    print("form | frame | values that differ | ms, GPU | ms, host")
    total = 0
    for name, preprocess in FORMS.items():
        for options in ({}, {"center": False}, {"stretch": True}):
            for size in SIZES if not options else SIZES[:1]:
                gpu = PyCuda()
                differing, gpu_ms, host_ms = compared(gpu, replace(preprocess, **options), size)
                gpu.close()
                total += differing
                print(f"{name} {options or ''} | {size[1]} x {size[0]} | {differing} | {gpu_ms:.3f} | {host_ms:.3f}")
    raise SystemExit(f"{total} values differ" if total else 0)


if __name__ == "__main__":
    main()

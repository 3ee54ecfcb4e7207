"""Letterbox and normalisation on the GPU: a raw frame in, the input of the network out.

The kernel computes in integers what `core/detection/resize.py` does, then normalises in float32 in the order of
`core/detection/preprocess.py`, so that each value is the host's own. It is compiled on the device; before it is used, a
frame of noise goes through it and through the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.core.detection.nv12 import NEUTRAL, luma_of
from edgekd.core.detection.preprocess import letterbox, placement_of
from edgekd.core.detection.resize import HIGH_BITS, LOW_BITS, neighbours
from edgekd.core.errors import DeviceError

if TYPE_CHECKING:
    from edgekd.agent.runtimes.cuda import Cuda
    from edgekd.core.detection.types import Preprocess

NAME = "letterbox"
BYTES, FLOAT_BYTES, PLANES = range(3)
"""Forms of the output: bytes [h, w, channels], the same as float32, or normalised float32 [channels, h, w]."""
BLOCK = (32, 8, 1)
"""Threads of a block, one for each pixel of the output."""
SOURCE = """
extern "C" __global__ void letterbox(
    const unsigned char *frame, const int *columns, const int *rows, void *out,
    int frame_width, int channels, int width, int height, int left, int top, int across, int down,
    int fill, int form, int reversed, float scale0, float scale1, float scale2, float mean0, float mean1, float mean2)
{
    const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= width || y >= height)
        return;
    const int column = x - left, row = y - top, pixel = y * width + x;
    const bool inside = column >= 0 && column < across && row >= 0 && row < down;
    for (int channel = 0; channel < channels; ++channel) {
        int value = fill;
        if (inside) {
            const int before = columns[column] * channels + channel;
            const int after = columns[across + column] * channels + channel;
            const int of_before = columns[2 * across + column], of_after = columns[3 * across + column];
            const unsigned char *upper = frame + (size_t)rows[row] * frame_width * channels;
            const unsigned char *lower = frame + (size_t)rows[down + row] * frame_width * channels;
            const int above = (upper[before] * of_before + upper[after] * of_after) >> LOW_BITS;
            const int below = (lower[before] * of_before + lower[after] * of_after) >> LOW_BITS;
            value = (above * rows[2 * down + row]) >> HIGH_BITS;
            value = (value + ((below * rows[3 * down + row]) >> HIGH_BITS) + 2) >> 2;
        }
        if (form == BYTES) {
            ((unsigned char *)out)[pixel * channels + channel] = (unsigned char)value;
        } else if (form == FLOAT_BYTES) {
            ((float *)out)[pixel * channels + channel] = (float)value;
        } else {
            const int plane = reversed ? 2 - channel : channel;
            const float scale = plane == 0 ? scale0 : plane == 1 ? scale1 : scale2;
            const float mean = plane == 0 ? mean0 : plane == 1 ? mean1 : mean2;
            ((float *)out)[plane * width * height + pixel] = __fsub_rn(__fmul_rn((float)value, scale), mean);
        }
    }
}
"""
DEFINITIONS = {
    "BYTES": BYTES,
    "FLOAT_BYTES": FLOAT_BYTES,
    "PLANES": PLANES,
    "LOW_BITS": LOW_BITS,
    "HIGH_BITS": HIGH_BITS,
}
"""Macros of the source."""
_TESTED = (37, 53)  # height and width of the frame of noise; of NV12 twice as much


class GpuLetterbox:
    """The kernel for one kind of input. Raises DeviceError where it is not there, or differs from the host.

    An instance belongs to the thread that made it.
    """

    def __init__(self, gpu: Cuda, preprocess: Preprocess, batch: int) -> None:
        self._gpu, self._preprocess = gpu, preprocess
        self._kernel = gpu.kernel(SOURCE, NAME, DEFINITIONS)
        self._sent = [_Buffer(gpu) for _ in range(batch)]
        scale, std, mean = preprocess.scale, np.array(preprocess.std), np.array(preprocess.mean)
        self._normalisation = [np.float32(value) for value in (*(scale / std), *(mean / std))]
        self.dtype = self._tested_type()

    def enqueue(self, frame: np.ndarray, index: int, goal: int) -> None:
        """Enqueue a frame's way into the input at the address `goal`.

        frame: BGR uint8 [h, w, 3], or NV12 uint8 [h * 3 / 2, w] for `nv12`; index: of the frame in its batch.
        """
        preprocess, is_nv12 = self._preprocess, frame.ndim == 2
        at = placement_of(frame, preprocess)
        width, height = at.width, at.height
        size = np.array([width, at.left, at.top, at.across, at.down, preprocess.width, preprocess.height])
        tables = [neighbours(width, at.across), neighbours(height, at.down)]
        if is_nv12:
            tables += [neighbours(width // 2, at.across // 2), neighbours(height // 2, at.down // 2)]
        *addresses, source = self._sent[index].send([*tables, frame])
        if not is_nv12:
            form = PLANES if preprocess.input == "float32" else FLOAT_BYTES if preprocess.float_bytes else BYTES
            self._launch([source, *addresses, goal], size, 3, preprocess.pad_value, form)
            return
        form, item = (FLOAT_BYTES, 4) if preprocess.float_bytes else (BYTES, 1)
        self._launch([source, *addresses[:2], goal], size, 1, luma_of(preprocess.pad_value), form)
        below = goal + item * preprocess.height * preprocess.width
        self._launch([source + height * width, *addresses[2:], below], size // 2, 2, NEUTRAL, form)

    def _launch(self, addresses: Sequence[int], size: np.ndarray, channels: int, fill: int, form: int) -> None:
        frame_width, left, top, across, down, width, height = map(int, size)
        reverse = self._preprocess.color == "rgb"
        integers = [frame_width, channels, width, height, left, top, across, down, fill, form, reverse]
        arguments = [*map(np.uintp, addresses), *map(np.int32, integers), *self._normalisation]
        self._kernel(arguments, BLOCK, (-(-width // BLOCK[0]), -(-height // BLOCK[1]), 1))

    def _tested_type(self) -> np.dtype[Any]:
        """Return the type of the input, after comparing one of noise with the host's. Raises DeviceError."""
        height, width = _TESTED
        shape = (3 * height, 2 * width) if self._preprocess.input == "nv12" else (height, width, 3)
        frame = np.random.RandomState(0).randint(0, 256, shape).astype(np.uint8)
        expected, _ = letterbox(frame, self._preprocess)
        found = self._gpu.pinned(expected.shape, expected.dtype)
        address = self._gpu.allocate(expected.nbytes)
        self.enqueue(frame, 0, address)
        self._gpu.download(found, address)
        self._gpu.wait()
        if not np.array_equal(found, expected):
            differing = f"{int(np.count_nonzero(found != expected))} of {found.size} values that differ"
            raise DeviceError("letterbox on the GPU", expected="the values of the host", found=differing)
        return expected.dtype


class _Buffer:
    """Memory on host and GPU for what one frame needs; it grows with the frame."""

    def __init__(self, gpu: Cuda) -> None:
        self._gpu = gpu
        self._pinned = np.empty(0, np.uint8)
        self._address = 0

    def send(self, arrays: Sequence[np.ndarray]) -> list[int]:
        """Enqueue one copy of all arrays; return their addresses. All copies of before have to be over."""
        total = sum(each.nbytes for each in arrays)
        if total > len(self._pinned):
            self._pinned, self._address = self._gpu.pinned((total,), np.uint8), self._gpu.allocate(total)
        addresses, begin = [], 0
        for each in arrays:
            part: Any = self._pinned[begin : begin + each.nbytes].view(each.dtype).reshape(each.shape)
            np.copyto(part, each)
            addresses.append(self._address + begin)
            begin += each.nbytes
        self._gpu.upload(self._address, self._pinned[:total])
        return addresses

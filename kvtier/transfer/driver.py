"""The CUDA driver through ctypes: pinning, and copies by address. No build step, nothing to install.

Signatures and numbers are those of cuda.h 13.0; the symbols are the ones whose meaning never changes.
"""

import ctypes

import numpy as np

from kvtier.transfer.page_map import Addresses
from kvtier.transfer.pinning import Registrar

_PORTABLE, _DEVICE_MAP = 1, 2
_SAME_ADDRESS = 91  # CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM
_ORDER_STREAM, _ORDER_ANY = 1, 3
_OVERLAP = 1  # CU_MEMCPY_FLAG_PREFER_OVERLAP_WITH_COMPUTE
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: not ordered against the legacy default stream

BATCH = 4096
"""Copies of one call. With 50,000 drivers were seen to crash and to hang (vllm-project/vllm issue 49276)."""
_FIRST = np.zeros(BATCH, np.uint64)
"""Each copy has the first, and only, attributes: one index is what the driver reads, more are safe where it reads more."""


class _Attributes(ctypes.Structure):
    """CUmemcpyAttributes."""

    _fields_ = (
        ("order", ctypes.c_int),
        ("src_hint", ctypes.c_int * 2),
        ("dst_hint", ctypes.c_int * 2),
        ("flags", ctypes.c_uint),
    )


class CudaDriver(Registrar):
    """Calls need a current context, which torch makes; any thread that has one may call.

    Raises:
        OSError: there is no driver, or it refused; the message has its name for the error.
    """

    def __init__(self, library: str = "libcuda.so.1", *, batches: bool = True) -> None:
        """Load it; without `batches` copies are started one by one."""
        self._lib = ctypes.CDLL(library)
        # The symbol without a suffix keeps the first signature, with `failIdx`; 13.0 added a `_v2` without it.
        self.has_batches = batches and hasattr(self._lib, "cuMemcpyBatchAsync")

    def register(self, address: int, nbytes: int) -> None:
        """Pin a piece of this process's memory for every device."""
        flags = ctypes.c_uint(_PORTABLE | _DEVICE_MAP)
        self._call("cuMemHostRegister_v2", ctypes.c_void_p(address), ctypes.c_size_t(nbytes), flags)

    def unregister(self, address: int) -> None:
        """Give a pinned piece back, by its first address."""
        self._call("cuMemHostUnregister", ctypes.c_void_p(address))

    def same_addresses(self, device: int) -> bool:
        """Whether kernels reach pinned memory under the host's own addresses."""
        value = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), _SAME_ADDRESS, device)
        return bool(value.value)

    def stream(self, priority: int) -> int:
        """Make a stream and return its handle; it lives as long as the context. 0 is the lowest priority."""
        handle = ctypes.c_void_p()
        name = "cuStreamCreateWithPriority"
        self._call(name, ctypes.byref(handle), ctypes.c_uint(_NON_BLOCKING), ctypes.c_int(priority))
        return handle.value or 0

    def copy(
        self,
        dst: Addresses,
        src: Addresses,
        nbytes: Addresses,
        stream: int,
        *,
        any_order: bool,
    ) -> None:
        """Start copies on a stream, which must not be the legacy default one.

        `any_order` lets the driver read the sources before the stream gets there.
        """
        if not self.has_batches:
            self._one_by_one(dst, src, nbytes, stream)
            return
        arrays = [np.ascontiguousarray(array) for array in (dst, src, nbytes)]
        order = _ORDER_ANY if any_order else _ORDER_STREAM
        attributes = _Attributes(order=order, flags=_OVERLAP)
        for i in range(0, len(nbytes), BATCH):
            self._batch([array[i : i + BATCH] for array in arrays], attributes, stream)

    def _batch(self, arrays: list[Addresses], attributes: _Attributes, stream: int) -> None:
        failed = ctypes.c_size_t(0)
        self._call(
            "cuMemcpyBatchAsync",
            *(ctypes.c_void_p(array.ctypes.data) for array in arrays),
            ctypes.c_size_t(len(arrays[0])),
            ctypes.byref(attributes),
            ctypes.c_void_p(_FIRST.ctypes.data),
            ctypes.c_size_t(1),
            ctypes.byref(failed),
            ctypes.c_void_p(stream),
        )

    def _one_by_one(self, dst: Addresses, src: Addresses, nbytes: Addresses, stream: int) -> None:
        for to, from_, n in zip(dst.tolist(), src.tolist(), nbytes.tolist(), strict=True):
            self._call(
                "cuMemcpyAsync",
                ctypes.c_uint64(to),
                ctypes.c_uint64(from_),
                ctypes.c_size_t(n),
                ctypes.c_void_p(stream),
            )

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._lib, name)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self._lib.cuGetErrorName(code, ctypes.byref(text))
            raise OSError(code, f"{name}: {(text.value or b'an unknown error').decode()}")

"""A tensor of a holding: its bytes without a copy, and typed views of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Callable, Tuple

from .errors import Corrupt, Refused

if TYPE_CHECKING:
    from .layout import Layout

# numpy's names, by safetensors' names.
_NUMPY = {
    "BOOL": "bool_",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "C64": "complex64",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}

# ml_dtypes' names for what numpy has not.
_ML_DTYPES = {
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}

_TORCH = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "C64": "complex64",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}


class Tensor:
    """`dtype` and `shape` as safetensors names them. `data` is a read-only memoryview of the bytes, never a copy."""

    __slots__ = ("_count_copy", "_index", "_layout", "data", "name")

    def __init__(self, name: str, layout: "Layout", index: int, data: memoryview, count_copy: Callable[[int], None]) -> None:
        self.name = name
        self.data = data
        self._layout = layout
        self._index = index
        self._count_copy = count_copy

    @property
    def dtype(self) -> str:
        return self._layout.dtype(self._index)

    @property
    def shape(self) -> Tuple[int, ...]:
        return self._layout.shape(self._index)

    @property
    def nbytes(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        return f"Tensor({self.name!r}, {self.dtype}, {self.shape})"

    def _no_view(self, library: str, way_out: str) -> Refused:
        return Refused(
            f"tensor {self.name!r} has dtype {self.dtype}, which {library} does not have",
            field=self.name,
            value=self.dtype,
            way_out=way_out,
        )

    def _missing(self, library: str, way_out: str) -> Refused:
        return Refused(f"{library} is not installed", field=library, value="not installed", way_out=way_out)

    def _check_size(self, item_bytes: int) -> None:
        """The layout's size and shape have one answer, or no typed view is right."""
        expected = math.prod(self.shape) * item_bytes
        if expected != self.nbytes:
            raise Corrupt(
                f"tensor {self.name!r} of {self.dtype} {self.shape} needs {expected} bytes, the layout gives it {self.nbytes}",
                field=self.name,
                value=str(self.nbytes),
                limit=str(expected),
            )

    def _too_large(self, library: str, error: Exception) -> Refused:
        return Refused(
            f"tensor {self.name!r} has shape {self.shape}, which {library} cannot have: {error}",
            field=self.name,
            value=str(self.shape),
            way_out="use .data, the raw bytes",
        )

    def numpy(self) -> Any:
        """A read-only numpy array over the bytes; a tensor that lies unaligned in its file is copied, and counted."""
        try:
            import numpy
        except ImportError:
            raise self._missing("numpy", "install numpy, or use .torch(), or .data, the raw bytes") from None

        if self.dtype in _NUMPY:
            dtype = numpy.dtype(getattr(numpy, _NUMPY[self.dtype]))
        elif self.dtype in _ML_DTYPES:
            dtype = self._ml_dtype(numpy)
        else:
            raise self._no_view("numpy", "use .data, the raw bytes, or .torch()")
        self._check_size(dtype.itemsize)
        try:
            array = numpy.frombuffer(self.data, dtype=dtype) if self.nbytes else numpy.empty(0, dtype=dtype)
            array = array.reshape(self.shape)
        except (ValueError, OverflowError) as error:
            raise self._too_large("numpy", error) from error
        if not array.flags.aligned:
            self._count_copy(self.nbytes)
            array = array.copy()
            array.flags.writeable = False
        return array

    def _ml_dtype(self, numpy: Any) -> Any:
        try:
            import ml_dtypes
        except ImportError:
            raise self._no_view("numpy", "install ml_dtypes, or use .torch(), or .data, the raw bytes") from None
        scalar = getattr(ml_dtypes, _ML_DTYPES[self.dtype], None)
        if scalar is None:
            raise self._no_view("this version of ml_dtypes", "install a newer ml_dtypes, or use .torch() or .data")
        return numpy.dtype(scalar)

    def torch(self) -> Any:
        """A torch tensor over the bytes. Torch cannot mark it read-only: writing into it is a SIGSEGV."""
        import warnings

        try:
            import torch  # type: ignore[import-not-found,unused-ignore]
        except ImportError:
            raise self._missing("torch", "install torch, or use .data, the raw bytes") from None

        dtype = getattr(torch, _TORCH[self.dtype], None) if self.dtype in _TORCH else None
        if dtype is None:
            raise self._no_view("torch", "use .data, the raw bytes")
        self._check_size(dtype.itemsize)
        if self.nbytes == 0:
            try:
                return torch.empty(self.shape, dtype=dtype)
            except (RuntimeError, TypeError, OverflowError) as error:
                raise self._too_large("torch", error) from error
        buffer: Any = self.data
        if self._address_of() % dtype.itemsize:
            self._count_copy(self.nbytes)
            buffer = bytearray(self.data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.frombuffer(buffer, dtype=dtype).reshape(self.shape)

    def _address_of(self) -> int:
        # The mapping begins at a page: the offset alone decides.
        return self._layout.place(self._index)[1]

"""Pictures and audio of other libraries: Pillow images, numpy arrays, torch tensors.

No library is imported for the check: without the import there are no objects of it. Ambiguous dtypes and shapes are
rejected.

Try it: ``python -c "import numpy, studio; print(studio.Image.accept(numpy.zeros((3, 8, 9))).size)"``
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

from studio.errors import describe

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    from numpy.typing import NDArray

_CHANNELS = (1, 3, 4)
_SHAPES = "(H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels"
_HALF = 0.5 / 255  # half a level: values beyond 0 or 1 that round to 0 or 255


def is_pil(value: object) -> TypeGuard[PIL.Image.Image]:
    """Whether this is a Pillow image."""
    pil = sys.modules.get("PIL.Image")
    return pil is not None and isinstance(value, pil.Image)


def is_array(value: object) -> bool:
    """Whether this is a numpy array or a torch tensor."""
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    return (numpy is not None and isinstance(value, numpy.ndarray)) or (
        torch is not None and isinstance(value, torch.Tensor)
    )


def pixels(value: Any) -> NDArray[np.uint8]:
    """The pixels of an array or tensor, uint8 (H, W), (H, W, 3) or (H, W, 4).

    Accepts uint8, bool (black and white) and floats from 0 to 1; (H, W), (H, W, C) and (C, H, W), distinguished by the
    number of channels; and a batch of one. Raises ValueError for anything else.
    """
    array = _numpy(value)
    return _to_8_bits(_channels_last(array))


def samples(value: Any) -> NDArray[np.floating[Any]]:
    """The samples of an array or tensor of floats, (channels, n). Raises ValueError for others."""
    array = _numpy(value)
    if array.dtype.kind != "f" or array.ndim not in (1, 2):
        raise ValueError(f"samples must be floats, (n,) or (channels, n), not {array.dtype} {array.shape}")
    return array[None] if array.ndim == 1 else array


def rate(value: object) -> int:
    """A sample rate. Raises ValueError if it is not a whole number."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"the rate is {value!r}, but must be a whole number of Hz")
    return value


def _numpy(value: Any) -> NDArray[Any]:
    import numpy as np

    if isinstance(value, np.ndarray):
        return value
    try:
        tensor = value.detach().cpu()
        return np.asarray(tensor.float() if tensor.is_floating_point() else tensor)  # numpy has no bfloat16
    except (RuntimeError, TypeError, NotImplementedError) as error:  # sparse, or without data
        raise ValueError(f"the tensor cannot be read: {describe(error, 100)}") from error


def _channels_last(array: NDArray[Any]) -> NDArray[Any]:
    """(H, W) or (H, W, C), C being 3 or 4."""
    shape = array.shape
    if array.ndim == 4 and shape[0] == 1:
        array = array[0]
    if array.ndim == 4:
        raise ValueError(f"it is a batch of {shape[0]} pictures, but must be one: pass `array[0]`, for example")
    if 0 in shape or array.ndim not in (2, 3):
        raise ValueError(f"pixels must be {_SHAPES}, not {shape}")
    if array.ndim == 2:
        return array
    first, last = array.shape[0] in _CHANNELS, array.shape[2] in _CHANNELS
    if first and last:
        raise ValueError(f"the shape {shape} may be (C, H, W) or (H, W, C): pass a PIL picture, or `Image.from_array`")
    if not first and not last:
        raise ValueError(f"pixels must be {_SHAPES}, not {shape}")
    array = array.transpose(1, 2, 0) if first else array
    return array[:, :, 0] if array.shape[2] == 1 else array


def _to_8_bits(array: NDArray[Any]) -> NDArray[np.uint8]:
    import numpy as np

    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype == np.bool_:
        return np.where(array, np.uint8(255), np.uint8(0))
    if array.dtype.kind != "f":
        raise ValueError(f"pixels must be uint8, bool, or floats from 0 to 1, not {array.dtype}")
    low, high = float(array.min()), float(array.max())
    if not (low >= -_HALF and high <= 1 + _HALF):  # NaN too
        raise ValueError(f"floating-point pixels must be from 0 to 1, not from {low:g} to {high:g}: scale them first")
    return (array.astype(np.float32) * 255).round().clip(0, 255).astype(np.uint8)

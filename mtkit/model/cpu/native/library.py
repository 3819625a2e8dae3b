"""The compiled library of translation: the structures it takes, and matrices in the layout of its kernels.

Shapes: O output features, D input features, both padded; N outputs in a panel, P panels, M inputs in a lane.
"""

from __future__ import annotations

import copy
import ctypes
from ctypes import POINTER, Structure, c_float, c_int64, c_void_p
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from mtkit.model.attention import Linear
from mtkit.model.cpu.native.loading import INSTRUCTIONS, address, declare, instruction_limit, load_library
from mtkit.model.quantized import quantize_matrix

_LANES = {1: 8, 2: 16, 3: 16}  # floats in a vector
_ROW_BYTES = 64  # what a row of bytes is padded to where rows are multiplied one by one
_INPUTS_IN_LANE = 4  # neighboring inputs, of 8 bits, whose products are added at once
_INPUT_ZERO = {1: 64, 2: 64, 3: 128}
"""What stands for 0 in rounded inputs, which are bytes without a sign: their magnitude is less.

They have 8 bits with VNNI. Without it, two products are added in 16 bits, so there are 7.
"""
MAX_INPUTS = 2**16
"""Inputs of a linear layer, at most: with more, sums of 255 x 127 might not fit into 32 bits."""


class _CLinear(Structure):
    """`Linear` in native.h."""

    _fields_ = [
        ("outputs", c_int64),
        ("inputs", c_int64),
        ("weight", c_void_p),
        ("scales", c_void_p),
        ("starts", c_void_p),
        ("bias", c_void_p),
    ]


class CNorm(Structure):
    """`Norm` in native.h."""

    _fields_ = [("gain", c_void_p), ("bias", c_void_p)]


class CLayer(Structure):
    """`Layer` in native.h."""

    _fields_ = [
        ("self_norm", CNorm),
        ("cross_norm", CNorm),
        ("feed_norm", CNorm),
        ("qkv", _CLinear),
        ("self_out", _CLinear),
        ("q", _CLinear),
        ("kv", _CLinear),
        ("cross_out", _CLinear),
        ("inner", _CLinear),
        ("outer", _CLinear),
    ]


class CStack(Structure):
    """`Stack` in native.h."""

    _fields_ = [
        ("layers", c_int64),
        ("true_width", c_int64),
        ("width", c_int64),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("head_width", c_int64),
        ("feed_width", c_int64),
        ("activation", c_int64),
        ("pre", c_int64),
        ("rotary", c_int64),
        ("epsilon", c_float),
        ("residual_scale", c_float),
        ("query_scale", c_float),
        ("embedding_scale", c_float),
        ("embedding", c_void_p),
        ("embedding_norm", CNorm),
        ("final_norm", CNorm),
        ("layer", POINTER(CLayer)),
    ]


class CModel(Structure):
    """`Model` in native.h."""

    _fields_ = [("instructions", c_int64), ("encoder", CStack), ("decoder", CStack), ("output", _CLinear)]


@cache
def _load() -> ctypes.CDLL | None:
    """Return the library with the types of its functions, or None if it was not built."""
    found = load_library("_native")
    if found is None:
        return None
    pointer, integer = c_void_p, c_int64
    functions: dict[str, tuple[type | None, list[type]]] = {
        "mtkit_instructions": (integer, []),
        "mtkit_encode": (pointer, [pointer, pointer, pointer, integer, pointer, pointer]),
        "mtkit_step": (integer, [pointer, pointer, pointer, pointer, pointer]),
        "mtkit_select": (integer, [pointer, pointer, integer]),
        "mtkit_free": (None, [pointer]),
        "mtkit_best_work": (integer, [pointer, integer]),
        "mtkit_best": (None, [pointer, pointer, integer, pointer, *[integer] * 3, *[pointer] * 4]),
        "mtkit_best_listed_work": (integer, [pointer, integer]),
        "mtkit_best_listed": (
            None,
            [
                integer,
                pointer,
                pointer,
                integer,
                pointer,
                pointer,
                integer,
                pointer,
                *[integer] * 3,
                *[pointer] * 4,
            ],
        ),
        "mtkit_linear": (None, [integer, pointer, pointer, integer, pointer, pointer]),
    }
    return declare(found, functions)


def library() -> ctypes.CDLL:
    """Return the library, which `instructions` found."""
    found = _load()
    assert found is not None
    return found


def instructions() -> int:
    """Return the instructions to use, see `INSTRUCTIONS`; 0 without the library, or on a CPU that it does not suit.

    Raises:
        ConfigError: If the variable MTKIT_NATIVE has an unknown value.
    """
    found = _load()
    return 0 if found is None else min(found.mtkit_instructions(), instruction_limit())


def instructions_name(number: int) -> str:
    """Return the name of a set of instructions."""
    return next(name for name, known in INSTRUCTIONS.items() if known == number)


def padded(size: int, multiple: int = 32) -> int:
    """Return the next multiple."""
    return -(-size // multiple) * multiple


def _pad_blocks(x: Tensor, dim: int, blocks: int, size: int) -> Tensor:
    """Split a dimension into equal blocks and pad each with zeros to a size."""
    x = x.movedim(dim, -1).unflatten(-1, (blocks, -1))
    return F.pad(x, (0, size - x.shape[-1])).flatten(-2).movedim(-1, dim)


class NativeLinear:
    """A linear layer in the layout of the kernels.

    Args:
        linear: the layer; a matrix that is stored in 8 bits is taken as it is for 8-bit products.
        int8: multiply 8-bit integers.
        number: instructions, see `INSTRUCTIONS`.
        outputs: number of blocks of its outputs, and the size that each is padded to.
        inputs: the same for its inputs.
        padding_bias: bias of the outputs that are added.
    """

    def __init__(
        self,
        linear: Linear,
        int8: bool,
        number: int,
        outputs: tuple[int, int],
        inputs: tuple[int, int],
        padding_bias: float = 0.0,
    ) -> None:
        weight, scales = linear.weight.detach(), linear.weight_scale
        if int8 and scales is None:
            weight, scales = quantize_matrix(weight)
        elif not int8 and scales is not None:
            weight, scales = weight * scales.detach()[:, None], None
        weight = _pad_blocks(_pad_blocks(weight, 0, *outputs), 1, *inputs)
        O = padded(weight.shape[0])  # noqa: E741
        extra = O - weight.shape[0]
        weight_OD = F.pad(weight, (0, 0, 0, extra))
        self.outputs, self.inputs = weight_OD.shape
        bias: Tensor | None = linear.bias
        self.bias: Tensor | None = None
        if bias is not None:
            self.bias = F.pad(_pad_blocks(bias.detach().float(), 0, *outputs), (0, extra), value=padding_bias)
        elif padding_bias and extra:
            self.bias = F.pad(torch.zeros(O - extra), (0, extra), value=padding_bias)
        self.scales = self.starts = None
        self.input_levels, self.instructions = _INPUT_ZERO[number] - 1, number
        panel = 2 * _LANES[number]
        if scales is None:
            weight_PND = weight_OD.float().unflatten(0, (-1, panel))
            self.weight = weight_PND.transpose(1, 2).contiguous()  # [P, D, N]
        else:
            self.scales = F.pad(_pad_blocks(scales.detach().float(), 0, *outputs), (0, extra)).contiguous()
            self.starts = -_INPUT_ZERO[number] * weight_OD.sum(dim=1, dtype=torch.int32)
            weight_PNDM = weight_OD.unflatten(0, (-1, panel)).unflatten(2, (-1, _INPUTS_IN_LANE))
            self.weight = weight_PNDM.transpose(1, 2).contiguous()  # [P, D / M, N, M]
        self.structure = self._structure()

    def _structure(self) -> _CLinear:
        return _CLinear(
            self.outputs,
            self.inputs,
            self.weight.data_ptr(),
            address(self.scales),
            address(self.starts),
            address(self.bias),
        )

    def in_rows(self) -> NativeLinear:
        """Return the layer with a row of weights for each output, for `mtkit_best_listed`."""
        rows, panel = copy.copy(self), 2 * _LANES[self.instructions]
        weight = self.weight.view(
            self.outputs // panel, -1, panel, 1 if self.scales is None else _INPUTS_IN_LANE
        )
        weight_OD = weight.transpose(1, 2).reshape(self.outputs, self.inputs)
        if self.scales is not None:
            weight_OD = F.pad(weight_OD, (0, padded(self.inputs, _ROW_BYTES) - self.inputs))
        rows.weight = weight_OD.contiguous()
        rows.structure = rows._structure()
        return rows

"""FLOPs of single instructions of a compiled program: products, convolutions, attention kernels."""

import math
import re

from flaxlm.aot.hlo import Instruction, Module

# Matrix products over all pairs of queries and keys, 2 FLOPs each, that a kernel computes: scores
# and weighted values forward; scores, d weights and d query, or d key and d value, backward.
_FORWARD, _D_QUERY, _D_KEYS, _D_ALL = 2, 3, 4, 5

# Pallas' names of its attention kernels.
_ATTENTION = re.compile(r"splash|flash|attention|mha")


def product_flops(module: Module, computation: str, instruction: Instruction) -> float:
    """FLOPs of a dot or a convolution, of which only the taps that meet the input count.

    A TPU program has its batched products as convolutions over dilated windows that skip nearly
    everything; counting whole windows would be far too much.
    """
    around = module.computations[computation]
    left, right = (around[name].shapes[0].dims for name in instruction.operands[:2])
    result = instruction.shapes[0].dims
    if instruction.opcode == "dot":
        contracted = instruction.numbers("lhs_contracting_dims")
        return 2.0 * math.prod(result) * math.prod(left[at] for at in contracted)
    of_input, of_kernel, of_result = re.split("_|->", instruction.words("dim_labels"))
    taps = 1
    for at in range(sum(label.isdigit() for label in of_kernel)):
        input_length, kernel, length = (
            dims[labels.index(str(at))]
            for dims, labels in ((left, of_input), (right, of_kernel), (result, of_result))
        )
        taps *= _taps(input_length, kernel, length, instruction.window, at)
    outputs = result[of_result.index("b")] * result[of_result.index("f")]
    groups = instruction.number("batch_group_count", default=1)
    return 2.0 * outputs * right[of_kernel.index("i")] * taps / groups


def _taps(length: int, kernel: int, result: int, window, at: int) -> int:
    """Pairs of a result and a kernel position along one dim that meet an element of the input."""

    def entry(name: str, default: str) -> str:
        return window[name][at] if name in window else default

    stride, before = int(entry("stride", "1")), int(entry("pad", "0_0").split("_")[0])
    input_step, kernel_step = int(entry("lhs_dilate", "1")), int(entry("rhs_dilate", "1"))
    count = 0
    for position in range(kernel):
        # The input's place for result i is (i * stride + offset) / input_step, if that is whole.
        offset = position * kernel_step - before
        period = input_step // math.gcd(stride, input_step)
        first = next((i for i in range(period) if (i * stride + offset) % input_step == 0), None)
        if first is None:
            continue
        highest = ((length - 1) * input_step - offset) // stride
        lowest = max(0, -(offset // stride))
        lowest += (first - lowest) % period
        count += max(0, (min(highest, result - 1) - lowest) // period + 1)
    return count


def attention_flops(module: Module, computation: str, instruction: Instruction) -> float:
    """FLOPs of a custom call that is an attention kernel, 0 of any other.

    Pairs of queries and keys count by the shapes of the operands and by what of them the mask lets
    through: `_share` of a Pallas kernel; cuDNN says what its mask is.
    """
    if not instruction.opcode.startswith("custom-call"):
        return 0.0
    around = module.computations[computation]
    target = instruction.target or ""
    arrays = [
        shape.dims
        for name in instruction.operands
        if name in around
        for shape in around[name].shapes
        if len(shape.dims) >= 3 and shape.dtype in ("bf16", "f16", "f32")
    ]
    if target.startswith("__cudnn$fmha") and len(arrays) >= 2:
        share = 0.5 if re.search(r'"mask_type":"(PADDING_)?CAUSAL', instruction.attributes) else 1.0
        # Rows of [B, L, H, K] or [B, H, L, K]; the compiler's layouts decide which, the products of
        # the sizes do not change where queries and keys are equally long.
        products = _D_ALL if "Backward" in target else _FORWARD
        rows, *middle, depth = arrays[0]
        return 2.0 * products * rows * math.prod(middle) * max(middle) * depth * share
    name = f"{instruction.name} {instruction.source}"
    if target != "tpu_custom_call" or len(arrays) < 3 or not _ATTENTION.search(name):
        return 0.0
    query, key = arrays[0], arrays[1]
    share = _share(around, instruction, query[-2], key[-2])
    return 2.0 * _products(around, instruction) * math.prod(query) * key[-2] * share


def _share(around, instruction: Instruction, queries: int, keys: int) -> float:
    """Of all pairs, those that jax's splash kernel computes; half, as in causal attention, of any
    other kernel.

    Its first operand has one entry per block of pairs that the grid visits: all of them, unless a
    band leaves out the same number in every row. If the mask cuts through blocks, the kernel also
    gets the positions of the queries (integers of two dims, as segments are where rows are not
    batched) or those blocks of the mask; without either all pairs count.
    """
    sizes = [
        re.search(rf'\bblock_{side}(?:_dkv|_dq)?\\*": (\d+)', instruction.attributes)
        for side in ("q", "kv")
    ]
    grid = around[instruction.operands[0]].shapes
    if not all(sizes) or len(grid) != 1 or len(grid[0].dims) != 3:
        return 0.5
    visited = math.prod(grid[0].dims[1:]) * math.prod(int(size[1]) for size in sizes)
    if visited < queries * keys:
        return visited / (queries * keys)
    arrays = [shape for name in instruction.operands for shape in around[name].shapes]
    numbers = [len(shape.dims) for shape in arrays if shape.dtype == "s32"]
    segments = 0 if 3 in numbers or "segmented" not in instruction.name else 2
    blocks = [shape for shape in arrays[1:] if shape.dims[-2:] == tuple(int(x[1]) for x in sizes)]
    cut = numbers.count(2) > segments or any(shape.dtype in ("s8", "pred") for shape in blocks)
    return 0.5 if cut else 1.0


def _products(around, instruction: Instruction) -> int:
    name = instruction.name
    if "dkv" in name:
        apart = any("_dq" in other for other in around)
        return _D_KEYS if apart else _D_ALL
    return _D_QUERY if "_dq" in name else _FORWARD

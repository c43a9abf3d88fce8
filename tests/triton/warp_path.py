"""The path of a warp through the machine code of a kernel, with all iterations of loops.

These conditional branches are taken:

1. A branch that ends a loop, for each iteration. Loops with matrix products have the iterations of such loops
   in the source, in the order of their starts (if some are missing, the shortest were unrolled); other loops
   have one iteration.
2. A branch over a call: calls are to divisions of 64 bits, which small numbers do not need.
3. An exit between matrix products: a program has a tile of one of several layers, here of the first.
"""

from collections.abc import Sequence

from tests.cuda.machine_code import Instruction

PRODUCTS = ("HMMA", "HGMMA")


def warp_path(code: Sequence[Instruction], passes: Sequence[int]) -> list[Instruction]:
    """The instructions in the order in which a warp executes them.

    Args:
        code: the kernel's instructions in the order of their addresses.
        passes: the iterations of each loop with products in the source.

    Raises:
        ValueError: the machine code has more loops with products than there are ``passes``.
    """
    place = {instruction.address: index for index, instruction in enumerate(code)}
    products = [index for index, instruction in enumerate(code) if instruction.kind in PRODUCTS]
    ends: dict[int, int] = {}  # of each loop, by its address
    for index, instruction in enumerate(code):
        if instruction.target is not None and instruction.target < instruction.address:
            ends[place[instruction.target]] = index
    heads = [head for head, end in sorted(ends.items()) if any(head <= p <= end for p in products)]
    if len(heads) > len(passes):
        raise ValueError(f"passes: expected {len(heads)}, one of each loop with products, got {list(passes)}")
    kept = sorted(sorted(range(len(passes)), key=lambda loop: -passes[loop])[: len(heads)])
    often = {ends[head]: passes[loop] for head, loop in zip(heads, kept, strict=True)}
    left = dict(often)

    path: list[Instruction] = []
    index = 0
    while index < len(code):
        instruction = code[index]
        path.append(instruction)
        target = None if instruction.target is None else place[instruction.target]
        always = not instruction.predicate
        if instruction.kind == "EXIT":
            if always or (products and products[0] < index < products[-1]):
                break
        elif target is not None and target <= index:
            left[index] = left.get(index, 1) - 1
            if left[index]:
                index = target
                continue
            left[index] = often.get(index, 1)
        elif target is not None and (always or any(i.kind == "CALL" for i in code[index:target])):
            index = target
            continue
        index += 1
    return path

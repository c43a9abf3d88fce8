"""Names, shapes and order of the arguments in the generated C++."""

from collections.abc import Iterable, Iterator

from dmm_fast.ops.schema import OPS, OTHERS
from dmm_fast.ops.schema._signature import Argument, Op, Signature, sizes_in

WIDTH = 110
"""The maximum line width."""


def camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def compiled_word(dims: str) -> str:
    """The dimensions of an argument in a compiled op on a CPU."""
    return {"p": "P", "n": "N", "s": "PB"}.get(dims[:1], dims[:1]) + dims[1:]


def shape(word: str) -> str:
    sizes = (size.strip("()").replace("2", "2 ").replace("-", " - ") for size in sizes_in(word))
    return f"[{', '.join(sizes)}]"


def prefix(kind: str) -> str:
    """The name prefix of the weights of a kind when they are single tensors, the same in all ops."""
    (prefix,) = {
        a.prefix for op in OPS.values() for a in op.arguments if (a.kind, a.dims) == ("weights", kind)
    }
    return prefix


def is_rows(argument: Argument) -> bool:
    """True if a tensor's rows may have any strides; other tensors are contiguous."""
    word = compiled_word(argument.dims)
    return word.startswith("N") or (word.startswith("PB") and len(word) > 2)


def packed(opening: str, parts: Iterable[str], closing: str, indent: str) -> str:
    """``opening part, part closing``, wrapped to the maximum line width."""
    parts = list(parts)
    line = f"{opening}{', '.join(parts)}{closing}"
    if len(line) <= WIDTH:
        return line
    lines, line = [opening], indent
    for i, part in enumerate(parts):
        text = part + (closing if i == len(parts) - 1 else ",")
        if len(f"{line} {text}") > WIDTH:
            lines.append(line)
            line = indent
        line += text if line == indent else f" {text}"
    return "\n".join((*lines, line))


def in_order(op: Op | None, signature: Signature) -> list[Argument]:
    """The arguments, first the one that defines dtype and sizes, last those with computed sizes."""
    plain = [a for a in signature.arguments if a.kind == "tensor" and "(" not in a.dims]
    leading = next((a for a in plain if op and a.name == op.leading), plain[0])
    others = (a for a in signature.arguments if a is not leading)
    return [leading, *sorted(others, key=lambda a: "(" in a.dims)]


def letters(arguments: Iterable[Argument]) -> list[str]:
    """The size letters of tensors, each once."""
    words = "".join(compiled_word(a.dims) for a in arguments if a.kind == "tensor")
    return list(dict.fromkeys(letter for letter in words if letter.isalpha()))


def condition(result: Argument, signature: Signature) -> str | None:
    """The flag that requests a result, if there is one."""
    flags = {a.name for a in signature.arguments if a.kind == "flag"}
    return next((flag for flag in (f"keep_{result.name}", f"with_{result.name}") if flag in flags), None)


def cpu_signatures() -> Iterator[tuple[Op, Signature]]:
    for op in OPS.values():
        for signature in op.signatures:
            yield op, signature


def launches() -> list[Signature]:
    """The ops that launch a kernel on a GPU and take tensors, not lists of tensors."""
    return [s for s in OTHERS.values() if s.name.startswith("_") and s.results]


def launched_weights() -> Iterable[str]:
    return dict.fromkeys(a.dims for s in launches() for a in s.arguments if a.kind == "weights")

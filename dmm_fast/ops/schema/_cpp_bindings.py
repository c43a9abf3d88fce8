"""The definitions and bindings of ``ops.inc``."""

from collections.abc import Iterable, Iterator, Sequence

from dmm_fast.ops.schema import WEIGHTS, signatures
from dmm_fast.ops.schema import _cpp_names as cpp
from dmm_fast.ops.schema._signature import BACKEND, Argument, Op, Signature


def bindings() -> Iterator[str]:
    yield "// Definitions of all ops, and the functions that torch calls for them, in namespace dmm.\n"
    yield _definitions()
    yield "namespace {\n"
    for kind in WEIGHTS:
        yield _take_weights(kind)
    for op, signature in cpp.cpu_signatures():
        yield _cpu_function(op, signature)
    yield "}  // namespace\n"
    yield _registrations("CPU", [signature.name for _, signature in cpp.cpu_signatures()])
    yield "#ifdef DMM_FAST_CUDA\nnamespace {\n"
    for kind in cpp.launched_weights():
        yield _take_launch_weights(kind)
    for signature in cpp.launches():
        yield _launch_function(signature)
    yield "}  // namespace\n"
    yield _registrations("CUDA", [signature.name for signature in cpp.launches()])
    yield "#endif"
    yield ""


def _definitions() -> str:
    lines = ["STABLE_TORCH_LIBRARY_FRAGMENT(dmm_fast, m) {"]
    for signature in signatures():
        pieces, line = [], ""
        for part in signature.schema.replace(" -> ", "\0-> ").replace(", ", ",\0").split("\0"):
            if len(line) + len(part) + 12 > cpp.WIDTH:
                pieces.append(line)
                line = ""
            line += (" " if line or pieces else "") + part
        pieces.append(line)
        before = "" if len(pieces) == 1 else "\n      "
        lines.append(f"  m.def({before}" + "\n      ".join(f'"{piece}"' for piece in pieces) + ");")
    return "\n".join((*lines, "}\n"))


def _registrations(key: str, names: Iterable[str]) -> str:
    lines = [f'  m.impl("{name}", TORCH_BOX(&{name.removeprefix("_")}));' for name in names]
    return "\n".join((f"STABLE_TORCH_LIBRARY_IMPL(dmm_fast, {key}, m) {{", *lines, "}\n"))


def _take_weights(kind: str) -> str:
    weights, prefix = WEIGHTS[kind], cpp.prefix(kind)
    return "\n".join(
        (
            "template <class S>",
            f"void set_sizes(const TensorChecks& checks, cpu::{cpp.camel(kind)}Tensors<S>& a) {{",
            *_sizes(dict.fromkeys("".join(weights.words)), "  "),
            "}\n",
            "template <class S>",
            _weights_head(f"cpu::{cpp.camel(kind)}Tensors<const S>", kind),
            f"  cpu::{cpp.camel(kind)}Tensors<const S> a;",
            *(
                f'  a.{name} = checks.dense<S>("{prefix}{name}", {name}, "{word}");'
                for name, word in weights.entries
            ),
            "  set_sizes(checks, a);",
            "  return a;",
            "}\n",
        )
    )


def _weights_head(made: str, kind: str) -> str:
    arguments = ("TensorChecks& checks", *(f"Tensor& {name}" for name in WEIGHTS[kind].fields))
    return cpp.packed(f"{made} {kind}_weights(", arguments, ") {", "    ")


def _sizes(letters: Iterable[str], indent: str) -> Iterator[str]:
    sizes = [f"a.{letter} = checks.size('{letter}')" for letter in letters]
    for start in range(0, len(sizes), 4):
        yield f"{indent}{', '.join(sizes[start : start + 4])};"


def _cpp_type(argument: Argument) -> str:
    return {
        "tensor": "Tensor&",
        "lengths": "Tensor&",
        "mask": "std::optional<Tensor>&",
        "choice": "const std::string&",
        "plan": "const cuda::Plan&",
        "flag": "bool",
    }[argument.kind]


def _head(signature: Signature) -> str:
    count = len(signature.flat_results)
    made = "Tensor" if count == 1 else f"Several<{count}>"
    arguments = (f"{_cpp_type(a)} {a.name}" for a in signature.flat_arguments)
    return cpp.packed(f"{made} {signature.name.removeprefix('_')}(", arguments, ") {", "    ")


def _returned(names: Sequence[str], indent: str) -> str:
    if len(names) == 1:
        return f"{indent}return {names[0]};"
    return cpp.packed(f"{indent}return Several<{len(names)}>{{", names, "};", f"{indent}    ")


def _chosen(argument: Argument) -> str:
    listed = ", ".join(f'"{choice}"' for choice in argument.choices)
    return f'choice("{argument.name}", {argument.name}, {{{listed}}})'


def _taken(argument: Argument) -> str | None:
    """The line that checks an argument and fills its field of the struct ``a``."""
    name = argument.name
    if argument.kind == "weights":
        fields = ("checks", *(argument.prefix + field for field in WEIGHTS[argument.dims].fields))
        return cpp.packed(f"    a.{name} = {argument.dims}_weights<S>(", fields, ");", " " * 8)
    if argument.kind == "tensor":
        how = "rows" if cpp.is_rows(argument) else "dense"
        taken = f'checks.{how}<S>("{name}", {name}, "{cpp.compiled_word(argument.dims)}")'
    elif argument.kind in ("lengths", "mask"):
        taken = f"checks.{argument.kind}({name})"
    elif argument.kind == "choice" and argument != BACKEND:
        taken = f"static_cast<cpu::{cpp.camel(name)}>({_chosen(argument)})"
    else:
        return None
    return f"    a.{name} = {taken};"


def _cpu_function(op: Op, signature: Signature) -> str:
    given = cpp.in_order(op, signature)
    leading = given[0].name
    lines = [
        _head(signature),
        "  check_backend(backend);",
        f'  TensorChecks checks(Device::cpu, "{leading}", {leading});',
        "  return by_dtype(checks.dtype(), [&](auto scalar) {",
        "    using S = decltype(scalar);",
        f"    cpu::{cpp.camel(signature.name)}<S> a;",
    ]
    lines += [line for a in given if (line := _taken(a)) is not None]
    lines += _sizes(cpp.letters((*given, *signature.results)), "    ")
    for result in signature.results:
        name = result.name
        if result.kind == "weights":
            lines.append(f"    set_sizes(checks, a.{name});")
            lines += (
                f'    Tensor {result.prefix}{field} = checks.make("{word}", a.{name}.{field});'
                for field, word in WEIGHTS[result.dims].entries
            )
            continue
        flag = cpp.condition(result, signature)
        wanted = f", {flag}" if flag else ""
        lines.append(
            f'    Tensor {name} = checks.make("{cpp.compiled_word(result.dims)}", a.{name}{wanted});'
        )
    lines += [f"    cpu::kernels<S>().{signature.name}(a);"]
    lines += [_returned([result.name for result in signature.flat_results], "    "), "  });", "}\n"]
    return "\n".join(lines)


def _take_launch_weights(kind: str) -> str:
    weights = WEIGHTS[kind]
    return "\n".join(
        (
            _weights_head(f"cuda::{cpp.camel(kind)}Weights<Tensor>", kind),
            *(f'  checks.check("{name}", {name}, "{word}");' for name, word in weights.entries),
            f"  return {{{', '.join(weights.fields)}}};",
            "}\n",
        )
    )


def _launch_function(signature: Signature) -> str:
    given = cpp.in_order(None, signature)
    leading = given[0].name
    lines = [_head(signature), f'  TensorChecks checks(Device::cuda, "{leading}", {leading});']
    for a in given:
        if a.kind == "tensor":
            lines.append(f'  checks.check("{a.name}", {a.name}, "{a.dims}");')
        elif a.kind == "lengths":
            lines.append(f'  checks.check("{a.name}", {a.name}, "B", ScalarType::Long);')
        elif a.kind == "choice":
            lines.append(f"  {_chosen(a)};")
    fields = [
        f"{a.dims}_weights(checks, {', '.join(WEIGHTS[a.dims].fields)})" if a.kind == "weights" else a.name
        for a in signature.arguments
    ]
    for result in signature.results:
        flag = cpp.condition(result, signature)
        fields.append(f'checks.make("{result.dims}"{(flag and f", {flag}") or ""})')
    lines.append(cpp.packed(f"  cuda::{cpp.camel(signature.name)}<Tensor> a{{", fields, "};", "      "))
    lines += [
        "  launch(a);",
        _returned([f"a.{result.name}" for result in signature.results], "  "),
        "}\n",
    ]
    return "\n".join(lines)

"""The structs of the generated C++: parameters of the CPU kernels and of the launches of scans."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from dmm_fast.ops.schema import OTHERS, WEIGHTS
from dmm_fast.ops.schema import _cpp_names as cpp
from dmm_fast.ops.schema._signature import BACKEND, Argument, Op, Signature

# --- cpu/ops.inc: parameters of the kernels ---------------------------------------------------------------


def cpu_structs() -> Iterator[str]:
    yield (
        "// Parameters of the CPU kernels, in namespace dmm::cpu; params.h describes the memory layouts.\n"
        "// Results and gradients are contiguous. Weight structs whose S is not const hold gradients.\n"
    )
    calls = [f"  X({name}, {cpp.camel(name)})" for name in _cpu_kernels()]
    yield " \\\n".join(("#define DMM_FOR_EACH_OP(X)", *calls)) + "\n"
    yield from _choices()
    for kind in WEIGHTS:
        yield _weights_struct(kind)
    for op, signature in cpp.cpu_signatures():
        yield _params_struct(op, signature)


def _cpu_kernels() -> list[str]:
    by_hand = [name for name in OTHERS if not name.startswith("_")]
    return [*(signature.name for _, signature in cpp.cpu_signatures()), *by_hand]


def _choices() -> Iterator[str]:
    chosen = {a.name: a.choices for _, s in cpp.cpu_signatures() for a in s.arguments if a.kind == "choice"}
    for name, choices in chosen.items():
        if name != BACKEND.name:
            yield f"enum class {cpp.camel(name)} {{ {', '.join(choices)} }};\n"


def _weights_struct(kind: str) -> str:
    sizes = [("int64_t", size, "") for size in dict.fromkeys("".join(WEIGHTS[kind].words))]
    return _struct("", "S", f"{cpp.camel(kind)}Tensors", [*sizes, *_weights_fields(kind, "S*")])


def _struct(doc: str, parameter: str, name: str, fields: Iterable[tuple[str, str, str]], *more: str) -> str:
    """A struct template of fields (type, name, comment); equal fields share a line."""
    lines = []
    for (kind, comment), alike in groupby(fields, key=lambda field: (field[0], field[2])):
        names = [field for _, field, _ in alike]
        if kind.endswith("*") and len(names) > 1:
            lines.append((f"  {kind[:-1]} {', '.join(f'*{n}' for n in names)};", comment))
        else:
            lines.append((f"  {kind} {', '.join(names)};", comment))
    column = 2 + max(len(field) for field, comment in lines if comment)
    body = [f"{field:<{column}}// {comment}" if comment else field for field, comment in lines]
    head = (*([f"// {doc}"] if doc else []), f"template <class {parameter}>", f"struct {name} {{")
    return "\n".join((*head, *body, *more, "};\n"))


def _weights_fields(kind: str, type_of_field: str) -> list[tuple[str, str, str]]:
    return [(type_of_field, name, cpp.shape(word)) for name, word in WEIGHTS[kind].entries]


def _params_struct(op: Op, signature: Signature) -> str:
    doc = op.doc if signature is op.forward else f"gradients of {op.name}"
    sizes = cpp.letters((*cpp.in_order(op, signature), *signature.results))
    fields = [("int64_t", size, "") for size in sizes]
    fields += [field for argument in signature.arguments for field in _cpu_field(argument)]
    for result in signature.results:
        if result.kind == "weights":
            fields.append((f"{cpp.camel(result.dims)}Tensors<S>", result.name, ""))
            continue
        flag = cpp.condition(result, signature)
        unless = f"; null without {flag}" if flag else ""
        fields.append(("S*", result.name, cpp.shape(cpp.compiled_word(result.dims)) + unless))
    return _struct(doc, "S", cpp.camel(signature.name), fields)


def _cpu_field(argument: Argument) -> Iterator[tuple[str, str, str]]:
    """The field of an argument, if it has one."""
    name = argument.name
    if argument.kind == "tensor":
        yield (
            "Rows<const S>" if cpp.is_rows(argument) else "const S*",
            name,
            cpp.shape(cpp.compiled_word(argument.dims)),
        )
    elif argument.kind == "weights":
        yield f"{cpp.camel(argument.dims)}Tensors<const S>", name, ""
    elif argument.kind == "lengths":
        yield "const int64_t*", name, "[B], each in [0, T]"
    elif argument.kind == "mask":
        yield "Observed", name, ""
    elif argument.kind == "choice" and argument != BACKEND:
        yield cpp.camel(name), name, ""


# --- cuda/ops.inc: parameters of the launches of scans ----------------------------------------------------


def cuda_structs() -> Iterator[str]:
    yield (
        "// Arguments and results of the launches of scans, in namespace dmm::cuda, for any tensor type.\n"
        "// visit(f) calls f(name, field) for each field.\n"
    )
    for kind in cpp.launched_weights():
        yield _visited(f"{cpp.camel(kind)}Weights", _weights_fields(kind, "Tensor"))
    for signature in cpp.launches():
        fields = [(_launch_type(a), a.name, _launch_comment(a)) for a in signature.arguments]
        fields += [("Tensor", r.name, f"{cpp.shape(r.dims)}, a result") for r in signature.results]
        yield _visited(cpp.camel(signature.name), fields)


def _visited(name: str, fields: Sequence[tuple[str, str, str]]) -> str:
    calls = (f'    f("{field}", {field});' for _, field, _ in fields)
    visit = ("", "  template <class F>", "  void visit(F f) {", *calls, "  }")
    return _struct("", "Tensor", name, fields, *visit)


def _launch_type(argument: Argument) -> str:
    if argument.kind == "weights":
        return f"{cpp.camel(argument.dims)}Weights<Tensor>"
    return {"choice": "std::string", "plan": "Plan", "flag": "bool"}.get(argument.kind, "Tensor")


def _launch_comment(argument: Argument) -> str:
    if argument.kind == "choice":
        return " or ".join(argument.choices)
    return {"tensor": cpp.shape(argument.dims), "lengths": "[B], int64"}.get(argument.kind, "")

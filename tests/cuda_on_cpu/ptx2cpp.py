"""Translates the PTX that nvcc makes to C++ that the emulator runs.

Every .entry becomes a C++ function that is called once for each CUDA thread; a kernel's registers are its local
variables, its labels are labels. So what runs is nvcc's own code - its inlining, vector loads, contracted products,
inline assembly - and not another compilation of the source. Each basic block counts how often it is entered.

    python -m cuda_on_cpu.ptx2cpp IN.ptx OUT.cpp
"""

from __future__ import annotations

import collections
import re
import sys
from pathlib import Path

from . import ptx_parser
from .ptx_instructions import C_TYPES
from .ptx_memory import MemoryTranslator
from .ptx_parser import BYTES, Unsupported

REGISTER_TYPES = {0: "bool", 1: "uint8_t", 2: "uint16_t", 4: "uint32_t", 8: "uint64_t"}
SIZES = {name: max(size, 1) for size, name in REGISTER_TYPES.items()}
SPECIAL_REGISTERS = {"%tid": "threadIdx", "%ntid": "blockDim", "%ctaid": "blockIdx", "%nctaid": "gridDim"}

# Classes of instructions for the counts; the first that matches an opcode is its class.
CLASSES = [
    ("ld.global", r"ld\.global|ldu|ld\.(?!shared|param|local|const)"),
    ("st.global", r"st\.global|st\.(?!shared|param|local)"),
    ("ld.shared", r"ld\.shared|ldmatrix"),
    ("st.shared", r"st\.shared"),
    ("ld.param", r"(ld|st)\.(param|const)"),
    ("local", r"(ld|st)\.local"),
    ("cp.async", r"cp\."),
    ("atomic", r"atom|red\."),
    ("mma", r"mma"),
    ("fp32", r"(add|sub|mul|fma|mad|min|max|neg|abs)\.\S*f32"),
    ("fp16", r"(add|sub|mul|fma|min|max|neg|abs)\.\S*f16"),
    ("fp64", r"(add|sub|mul|fma|mad|min|max|neg|abs|div|sqrt|rcp)\.\S*f64"),
    ("sfu", r"ex2|lg2|rcp|rsqrt|sqrt|sin|cos|tanh|div\.\S*f32"),
    ("warp", r"shfl|vote|match|activemask|redux"),
    ("barrier", r"bar|membar|fence"),
    ("div.int", r"(div|rem)\.[su]"),
    ("cvt", r"cvt\."),
    ("mov", r"mov|cvta"),
    ("branch", r"bra|brx|ret|exit|call"),
    ("predicate", r"setp|selp|set\."),
    ("int", r""),
]


def class_of(opcode: str) -> str:
    return next(name for name, pattern in CLASSES if re.match(pattern, opcode))


def c_name(name: str) -> str:
    return re.sub(r"\W", "_", name)


class FunctionTranslator(MemoryTranslator):
    def __init__(self, module: ptx_parser.Module, function: ptx_parser.Function):
        self.module, self.function = module, function
        self.name = c_name(function.name)
        self.lines: list[str] = []
        self.scopes: list[dict[str, str]] = [{}]  # register -> C++ variable
        self.registers: dict[str, str] = {}  # C++ variable -> C++ type
        self.arrays: list[str] = []  # declarations of .local and .param memory
        self.local: dict[str, str] = {}
        self.call_parameters: dict[str, str] = {}
        self.shared_offsets: dict[str, int] = {}
        self.shared_bytes = 0
        self.basic_blocks: list[collections.Counter] = []
        self.site_places: list[str] = []
        if not function.is_kernel:
            self.call_parameters = {p.name: "p_" + c_name(p.name) for p in function.parameters}
        self.begin_basic_block()
        for statement in function.statements:
            getattr(self, "on_" + type(statement).__name__)(statement)

    # ---- statements

    def begin_basic_block(self):
        self.lines.append(f"bb[{len(self.basic_blocks)}]++;")
        self.basic_blocks.append(collections.Counter())

    def on_OpenScope(self, _):
        self.scopes.append({})

    def on_CloseScope(self, _):
        self.scopes.pop()

    def on_Label(self, label):
        if label.name not in self.function.branch_tables:
            self.lines.append(f"{c_name(label.name)}:;")
            self.begin_basic_block()

    def on_Declaration(self, d):
        size = BYTES[d.type] * d.count
        for name in d.names:
            if d.space == "reg":
                variable = c_name(name.lstrip("%")) + (f"_{len(self.registers)}" if len(self.scopes) > 1 else "")
                self.scopes[-1][name] = variable
                self.registers[variable] = REGISTER_TYPES[BYTES[d.type]]
            elif d.space == "shared":
                self.shared_bytes = -(-self.shared_bytes // d.align) * d.align
                self.shared_offsets[name] = self.shared_bytes
                self.shared_bytes += size
            else:
                variable = f"{c_name(name)}_{len(self.arrays)}"
                self.arrays.append(f"alignas({max(d.align, 16)}) unsigned char {variable}[{size}];")
                (self.local if d.space == "local" else self.call_parameters)[name] = variable

    def on_Instruction(self, instruction):
        self.basic_blocks[-1][class_of(instruction.opcode)] += 1
        try:
            code = self.translate(instruction)
        except (Unsupported, KeyError, ValueError, StopIteration) as error:
            text = f"{instruction.opcode} {', '.join(instruction.operands)}"
            raise Unsupported(
                f"{self.function.name}, {instruction.place}: no translation of '{text}' ({error})"
            ) from error
        if instruction.guard:
            negated, register = instruction.guard.startswith("!"), instruction.guard.lstrip("!")
            code = f"if ({'!' if negated else ''}{self.register(register)}) {{ {code} }}"
        self.lines.append(code)
        if instruction.parts[0] in ("bra", "brx", "ret", "exit"):
            self.begin_basic_block()

    # ---- operands

    def register(self, name):
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        raise Unsupported("register " + name)

    def register_bytes(self, operand):
        variable = next((scope[operand] for scope in reversed(self.scopes) if operand in scope), None)
        return None if variable is None else SIZES[self.registers[variable]]

    def bits(self, operand, kind):
        if operand.startswith("!"):
            return "!" + self.bits(operand[1:], kind)
        if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", operand):
            return f"0x{operand[2:]}u"
        if re.fullmatch(r"0[dD][0-9a-fA-F]{16}", operand):
            return f"0x{operand[2:]}ull"
        if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)U?", operand):
            size = BYTES[kind] or 4
            return f"{int(operand.rstrip('U'), 0) & (1 << 8 * size) - 1:#x}{'ull' if size == 8 else 'u'}"
        special = re.fullmatch(r"(%\w+)\.([xyz])", operand)
        if special and special[1] in SPECIAL_REGISTERS:
            return f"{SPECIAL_REGISTERS[special[1]]}.{special[2]}"
        if operand in ("%laneid", "WARP_SZ"):
            return "uint32_t(lane_id())" if operand == "%laneid" else "32u"
        if operand in ("%clock", "%clock64", "%globaltimer"):
            return "0u"
        if operand in self.shared_offsets:
            return f"{self.shared_offsets[operand]}u"
        if operand in self.module.extern_shared:
            return "dynamic_offset"
        if operand in self.local:
            return f"uint64_t(uintptr_t({self.local[operand]}))"
        if operand in self.module.variables:
            return f"uint64_t(uintptr_t({c_name(operand)}))"
        if self.function.is_kernel and (offset := self.parameter_offset(operand)) is not None:
            return f"uint64_t(uintptr_t(parameters + {offset}))"
        return self.register(operand)

    def parameter_offset(self, name):
        return next((p.offset for p in self.function.parameters if p.name == name), None)

    def pointer(self, operand, space):
        base, offset = re.fullmatch(r"\[\s*([^\s+]+)\s*(?:\+\s*(-?\w+))?\s*\]", operand).groups()
        offset = int(offset or "0", 0)
        if space == "param":
            if base in self.call_parameters:
                return f"{self.call_parameters[base]} + {offset}"
            if (start := self.parameter_offset(base)) is not None:
                return f"const_cast<unsigned char*>(parameters) + {start + offset}"
        if space == "shared":
            return f"shared(uint32_t({self.bits(base, 'b32')}) + {offset & 0xFFFFFFFF}u)"
        return f"generic({self.bits(base, 'b64')} + {offset}ll)"

    def site(self, instruction):
        if instruction.place not in self.site_places or instruction.parts[0] not in ("bar", "barrier"):
            self.site_places.append(instruction.place)
        index = len(self.site_places) - 1 - self.site_places[::-1].index(instruction.place)
        return f"&sites_{self.name}[{index}]"

    # ---- control flow

    def _bra(self, i):
        return f"goto {c_name(i.operands[0])};"

    def _brx(self, i):
        targets = self.function.branch_tables[i.operands[1]]
        cases = " ".join(f"case {n}: goto {c_name(t)};" for n, t in enumerate(targets))
        return f"switch ({self.bits(i.operands[0], 'b32')}) {{ {cases} }}"

    def _ret(self, i):
        return "return;"

    def _exit(self, i):
        if not self.function.is_kernel:
            raise Unsupported("exit in a function")
        return "return;"

    def _trap(self, i):
        return 'trap("trap was executed");'

    def _call(self, i):
        operands = [o for o in i.operands]
        results = [] if not operands[0].startswith("(") else ptx_parser.split_operands(operands.pop(0)[1:-1])
        callee = operands.pop(0)
        arguments = ptx_parser.split_operands(operands[0][1:-1]) if operands else []
        if callee == "__assertfail":
            return 'trap("an assertion failed");'
        if callee not in {f.name for f in self.module.functions}:
            raise Unsupported("call of " + callee)
        return f"function_{c_name(callee)}({', '.join(self.call_parameters[n] for n in results + arguments)});"

    # ---- the C++ function

    def declaration(self) -> str:
        if self.function.is_kernel:
            return f"static void kernel_{self.name}(const unsigned char* parameters)"
        arguments = ", ".join(f"unsigned char* {self.call_parameters[p.name]}" for p in self.function.parameters)
        return f"static void function_{self.name}({arguments})"

    def definition(self) -> str:
        align = max(self.module.extern_shared.values(), default=16)
        dynamic_offset = -(-self.shared_bytes // align) * align
        if not self.function.is_kernel and self.shared_bytes:
            raise Unsupported(f"{self.function.name}: shared memory in a function that was not inlined")
        text = "\n".join(self.lines)
        used = set(re.findall(r"\w+", text))
        places = ", ".join(f'{{"{place}"}}' for place in self.site_places or ["?"])
        out = [
            f"static const SiteName sites_{self.name}[] = {{{places}}};",
            self.declaration() + " {",
            f"[[maybe_unused]] constexpr uint32_t dynamic_offset = {dynamic_offset};",
            f"unsigned* bb = basic_block_counters({len(self.basic_blocks)});"
            if self.function.is_kernel
            else f"unsigned bb[{len(self.basic_blocks)}] = {{}};",
            *self.arrays,
        ]
        by_type: dict[str, list[str]] = {}
        for variable, kind in self.registers.items():
            if variable in used:
                by_type.setdefault(kind, []).append(f"{variable} = 0")
        out += [f"{kind} {', '.join(variables)};" for kind, variables in by_type.items()]
        out += [text, "}"]
        if self.function.is_kernel:
            parameters = ", ".join(f"{{{p.offset}, {p.bytes}}}" for p in self.function.parameters)
            mixes = ", ".join(
                "{" + ", ".join(f'{{"{name}", {count}}}' for name, count in block.items()) + "}"
                for block in self.basic_blocks
            )
            static_bytes = dynamic_offset if self.module.extern_shared else self.shared_bytes
            out.append(
                f'static TranslatedKernel registered_{self.name}("{self.function.name}", kernel_{self.name}, '
                f"{static_bytes}, "
                f"{self.function.parameter_bytes}, {self.function.max_threads}, {{{parameters}}}, {{{mixes}}}, "
                f"sites_{self.name}, {max(len(self.site_places), 1)});"
            )
        return "\n".join(out)


def _variable(variable: ptx_parser.Variable) -> str:
    kind = C_TYPES[variable.type]
    values = [f"as<{kind}>(0x{v[2:]}u)" if v.lower().startswith("0f") else v for v in variable.initial]
    if any(re.search(r"[A-Za-z_$]{2}", v) and not v.startswith(("0x", "as<")) for v in values):
        raise Unsupported(f"{variable.name}: an initial value that is an address")
    initial = f" = {{{', '.join(values)}}}" if values else ""
    return f"alignas({max(variable.align, 16)}) static {kind} {c_name(variable.name)}[{variable.count}]{initial};"


def translate(text: str, left_out: str = "$.") -> str:
    """PTX to C++, without the kernels in whose names the regular expression `left_out` is found. Raises `Unsupported`
    with the instruction that has no translation."""
    module = ptx_parser.parse(text)
    kept = [f for f in module.functions if not f.is_kernel or not re.search(left_out, f.name)]
    functions = [FunctionTranslator(module, f) for f in kept]
    return "\n".join(
        [
            "// Made by ptx2cpp.py.",
            "#include <cuda_on_cpu/ptx.h>",
            '#pragma GCC diagnostic ignored "-Wunused"',
            '#pragma GCC diagnostic ignored "-Wnarrowing"',
            "using namespace cuda_on_cpu;",
            "using namespace cuda_on_cpu::ptx;",
            *(_variable(v) for v in module.variables.values()),
            *(f.declaration() + ";" for f in functions if not f.function.is_kernel),
            *(f.definition() for f in functions),
            "",
        ]
    )


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(translate(Path(sys.argv[1]).read_text()))

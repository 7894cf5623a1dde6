"""Reads the text of a PTX module: its variables, and its functions as lists of statements."""

from __future__ import annotations

import dataclasses
import re

BYTES = {
    "pred": 0, "b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "f16": 2, "bf16": 2,
    "b32": 4, "u32": 4, "s32": 4, "f32": 4, "f16x2": 4, "bf16x2": 4, "tf32": 4,
    "b64": 8, "u64": 8, "s64": 8, "f64": 8,
}  # fmt: skip


class Unsupported(Exception):
    """Something in the PTX that has no translation; the message names it."""


@dataclasses.dataclass
class Parameter:
    name: str
    offset: int
    bytes: int


@dataclasses.dataclass
class Variable:
    name: str
    type: str
    count: int
    align: int
    initial: list[str]


@dataclasses.dataclass
class OpenScope:
    pass


@dataclasses.dataclass
class CloseScope:
    pass


@dataclasses.dataclass
class Label:
    name: str


@dataclasses.dataclass
class Declaration:
    """.reg, .shared, .local or .param in the body of a function."""

    space: str
    type: str
    names: list[str]
    count: int  # of elements; for registers written %r<n>, n
    align: int


@dataclasses.dataclass
class Instruction:
    parts: list[str]  # the opcode, split at its dots
    operands: list[str]
    guard: str | None  # "%p1" or "!%p1"
    place: str  # "file:line"

    @property
    def opcode(self) -> str:
        return ".".join(self.parts)


@dataclasses.dataclass
class Function:
    name: str
    is_kernel: bool
    parameters: list[Parameter]  # of a .func: results first
    statements: list
    branch_tables: dict[str, list[str]]
    max_threads: int

    @property
    def parameter_bytes(self) -> int:
        return max((p.offset + p.bytes for p in self.parameters), default=0)


@dataclasses.dataclass
class Module:
    functions: list[Function]
    variables: dict[str, Variable]
    extern_shared: dict[str, int]  # name of a dynamic shared memory array -> alignment


def split_operands(text: str) -> list[str]:
    """Splits at the commas that are not within brackets."""
    result, depth, current = [], 0, ""
    for character in text:
        depth += {"{": 1, "[": 1, "(": 1, "}": -1, "]": -1, ")": -1}.get(character, 0)
        if character == "," and depth == 0:
            result.append(current.strip())
            current = ""
        else:
            current += character
    return [*result, current.strip()] if current.strip() else result


_LABEL = re.compile(r"([$\w]+):(?!:)")
_LOCATION = re.compile(r"\.loc\s+(\d+)\s+(\d+)\s+\d+([^\n]*)\n")
_INLINED_AT = re.compile(r"inlined_at\s+(\d+)\s+(\d+)")
_VARIABLE = re.compile(
    r"^\s*(?:\.visible\s+|\.weak\s+)?\.(?:global|const)\s+(?:\.attribute\([^)]*\)\s+)?(?:\.align\s+(\d+)\s+)?\.(\w+)\s+"
    r"([\w$]+)(?:\[(\d*)\])?(?:\s*=\s*(\{[^}]*\}|[^;{]+))?;",
    re.M,
)
_FUNCTION = re.compile(
    r"(?:\.visible\s+|\.weak\s+)?\.(entry|func)\s*(?:\(([^)]*)\))?\s*([\w$]+)\s*\(([^)]*)\)([^{;]*)\{", re.S
)
_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.ptr\S*\s+(?:\.\w+\s+)*(?:\.align\s+\d+\s+)?)?([\w$]+)(?:\[(\d+)\])?$"
)
_DECLARATION = re.compile(r"\.(shared|local|param)\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d+)\])?$")


class _Parser:
    def __init__(self, text: str):
        text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
        # Debug sections (behind all code) hold braces of their own; strings hold what looks like comments.
        self.text = re.sub(r"(?m)//[^\n]*", "", text).split("\n\t.section")[0]
        self.files = {int(m[1]): m[2] for m in re.finditer(r'\.file\s+(\d+)\s+"([^"]+)"', text)}

    def module(self) -> Module:
        extern = re.finditer(r"\.extern\s+\.shared\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[\];", self.text)
        variables = {}
        for m in _VARIABLE.finditer(self.text):
            initial = split_operands(m[5].strip().strip("{}")) if m[5] else []
            count = int(m[4]) if m[4] else max(len(initial), 1)
            variables[m[3]] = Variable(m[3], m[2], count, int(m[1] or 16), initial)
        functions = [self.function(m) for m in _FUNCTION.finditer(self.text)]
        return Module(functions, variables, {m[2]: int(m[1]) for m in extern})

    def function(self, match: re.Match) -> Function:
        end, depth = match.end(), 1
        while depth:
            depth += {"{": 1, "}": -1}.get(self.text[end], 0)
            end += 1
        body = self.text[match.end() : end - 1]
        parameters, offset = [], 0
        for text in split_operands(match[2] or "") + split_operands(match[4]):
            if text.startswith(".reg"):
                raise Unsupported(f"{match[3]}: a function with register parameters")
            align, kind, name, count = _PARAMETER.match(text).groups()
            size = BYTES[kind] * int(count or 1)
            offset = -(-offset // int(align or BYTES[kind])) * int(align or BYTES[kind])
            parameters.append(Parameter(name, offset, size))
            offset += size
        limit = re.search(r"\.maxntid\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?", match[5])
        max_threads = int(limit[1]) * int(limit[2] or 1) * int(limit[3] or 1) if limit else 0
        tables = {m[1]: split_operands(m[2]) for m in re.finditer(r"([$\w]+):\s*\.branchtargets\s+([^;]*);", body)}
        return Function(match[3], match[1] == "entry", parameters, list(self.statements(body)), tables, max_threads)

    def place(self, file: str, line: str, rest: str) -> str:
        """The place of an instruction; where that is a header, the .cu file it was inlined into is named too."""
        frames = [(self.files.get(int(file), "?"), line)]
        if inlined := _INLINED_AT.search(rest):
            frames.append((self.files.get(int(inlined[1]), "?"), inlined[2]))
        own = [f for f in frames if "/include/" not in f[0]] or frames[-1:]
        place = f"{own[0][0].split('/')[-1]}:{own[0][1]}"
        if len(own) > 1 and own[1][0].endswith(".cu") and own[1][0] != own[0][0]:
            place += f" (from {own[1][0].split('/')[-1]}:{own[1][1]})"
        return place

    def statements(self, body: str):
        position, place = 0, "?"
        while True:
            while position < len(body) and body[position].isspace():
                position += 1
            if position == len(body):
                return
            if body[position] in "{}":
                yield OpenScope() if body[position] == "{" else CloseScope()
                position += 1
            elif match := _LOCATION.match(body, position):
                place = self.place(match[1], match[2], match[3])
                position = match.end()
            elif match := _LABEL.match(body, position):
                yield Label(match[1])
                position = match.end()
            else:
                end = body.index(";", position)
                statement = " ".join(body[position:end].split())
                position = end + 1
                if statement.startswith("."):
                    yield from self.declaration(statement)
                elif statement:
                    yield self.instruction(statement, place)

    def declaration(self, text: str):
        if text.startswith(".reg"):
            _, kind, names = text.split(None, 2)
            for name in split_operands(names):
                if many := re.fullmatch(r"(%\w+?)<(\d+)>", name):
                    names_of_range = [f"{many[1]}{i}" for i in range(int(many[2]))]
                    yield Declaration("reg", kind[1:], names_of_range, int(many[2]), 1)
                else:
                    yield Declaration("reg", kind[1:], [name], 1, 1)
        elif match := _DECLARATION.match(text):
            space, align, kind, name, count = match.groups()
            yield Declaration(space, kind, [name], int(count or 1), int(align or BYTES[kind]))
        # else .pragma, .branchtargets and the like

    def instruction(self, text: str, place: str) -> Instruction:
        guard = None
        if text.startswith("@"):
            guard, text = text[1:].split(None, 1)
        opcode, _, operands = text.partition(" ")
        return Instruction(opcode.split("."), split_operands(operands), guard, place)


def parse(text: str) -> Module:
    return _Parser(text).module()

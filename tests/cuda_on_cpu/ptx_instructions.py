"""The translation of PTX instructions to C++ statements: what one thread does with its registers.

`InstructionTranslator` has one method for each mnemonic (`_add`, `_cvt`, ...), which gets the instruction and returns
C++. A subclass supplies registers and symbols. The functions that the C++ calls are in include/cuda_on_cpu/ptx.h.

What most of a kernel is made of (integers, f32) is plain C++ without templates: the compiler reads hundreds of
thousands of such statements.
"""

from __future__ import annotations

from .ptx_parser import BYTES, Instruction, Unsupported, split_operands

C_TYPES = {
    "u8": "uint8_t", "s8": "int8_t", "b8": "uint8_t", "u16": "uint16_t", "s16": "int16_t", "b16": "uint16_t",
    "u32": "uint32_t", "s32": "int32_t", "b32": "uint32_t", "u64": "uint64_t", "s64": "int64_t", "b64": "uint64_t",
    "f32": "float", "f64": "double", "f16": "F16", "bf16": "BF16", "f16x2": "F16x2", "bf16x2": "BF16x2",
    "tf32": "uint32_t", "pred": "bool",
}  # fmt: skip
FLOATS = {"f16", "bf16", "f16x2", "bf16x2", "f32", "f64"}
DOUBLE_WIDTH = {"s16": "s32", "u16": "u32", "s32": "s64", "u32": "u64"}
LOGIC = {"and": "&", "or": "|", "xor": "^"}
COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "lo": "<", "ls": "<=", "hi": ">",
               "hs": ">="}  # fmt: skip
ARITHMETIC = {"add": "+", "sub": "-", "mul": "*"}


class InstructionTranslator:
    # ---- supplied by the subclass

    def register(self, name: str) -> str:
        raise NotImplementedError

    def register_bytes(self, operand: str) -> int | None:
        """None if the operand is no register."""
        raise NotImplementedError

    def bits(self, operand: str, kind: str) -> str:
        """The operand's bits as an unsigned C++ expression."""
        raise NotImplementedError

    # ---- helpers

    def typed(self, operand: str, kind: str) -> str:
        bits = self.bits(operand, kind)
        if kind == "f32":
            return f"as_float({bits})"
        if kind in FLOATS:
            return f"as<{C_TYPES[kind]}>({bits})"
        is_plain = not kind.startswith("s") and self.register_bytes(operand) == BYTES[kind]
        return bits if is_plain else f"{C_TYPES[kind]}({bits})"

    def assign(self, target: str, expression: str) -> str:
        """Of bits; the expression is an integer."""
        if target == "_":
            return f"(void)({expression});"
        return f"{self.register(target)} = {expression};"

    def put(self, target: str, expression: str, kind: str) -> str:
        if target == "_":
            return f"(void)({expression});"
        if kind == "f32":
            return f"{self.register(target)} = bits_of_float({expression});"
        if kind in FLOATS:
            return f"put({self.register(target)}, {C_TYPES[kind]}({expression}));"
        return f"{self.register(target)} = {C_TYPES[kind.replace('s', 'u')]}({expression});"

    def operand_type(self, i: Instruction) -> str:
        return next((p for p in reversed(i.parts) if p in BYTES), "b32")

    def translate(self, i: Instruction) -> str:
        method = getattr(self, "_" + i.parts[0], None)
        if method is None:
            raise Unsupported(i.opcode)
        return method(i)

    # ---- data movement

    def _mov(self, i):
        kind = self.operand_type(i)
        target, source = i.operands
        if target.startswith("{"):
            parts = split_operands(target[1:-1])
            bits = BYTES[kind] * 8 // len(parts)
            moves = " ".join(f"{self.register(p)} = v >> {n * bits};" for n, p in enumerate(parts) if p != "_")
            return f"{{ const uint64_t v = {self.bits(source, kind)}; {moves} }}"
        if source.startswith("{"):
            parts = split_operands(source[1:-1])
            size = BYTES[kind] // len(parts)
            part_kind = {1: "b8", 2: "b16", 4: "b32"}[size]
            terms = (f"uint64_t({self.bits(p, part_kind)}) << {8 * size * n}" for n, p in enumerate(parts))
            return self.assign(target, " | ".join(terms))
        return self.assign(target, self.bits(source, kind))

    def _cvta(self, i):
        target, source = i.operands
        value = self.bits(source, "b64")
        if "shared" in i.opcode:
            base = "uint64_t(uintptr_t(dynamic_shared))"
            return self.assign(target, f"{value} - {base}" if "to" in i.parts else f"{base} + {value}")
        return self.assign(target, value)

    # ---- arithmetic

    def _binary(self, i, function):
        kind = self.operand_type(i)
        if kind not in FLOATS:
            kind = kind.replace("s", "u")  # signed overflow is defined in PTX
        a, b = (self.typed(o, kind) for o in i.operands[1:3])
        is_plain = BYTES[kind] >= 4 and not kind.endswith("x2")
        expression = f"{a} {ARITHMETIC[function]} {b}" if is_plain else f"{function}({a}, {b})"
        return self.put(i.operands[0], self._modified(i, expression), kind)

    def _modified(self, i, expression):
        if "sat" in i.parts:
            if self.operand_type(i) not in FLOATS:
                raise Unsupported(i.opcode)
            return f"saturate({expression})"
        return f"relu({expression})" if "relu" in i.parts else expression

    def _add(self, i):
        if "cc" in i.parts:
            raise Unsupported(i.opcode)
        return self._binary(i, "add")

    def _sub(self, i):
        if "cc" in i.parts:
            raise Unsupported(i.opcode)
        return self._binary(i, "sub")

    def _product(self, i, kind):
        a, b = (self.typed(o, self.operand_type(i)) for o in i.operands[1:3])
        return f"{C_TYPES[kind]}({a}) * {C_TYPES[kind]}({b})"

    def _high_product(self, i):
        kind = self.operand_type(i)
        wide = {"s64": "__int128", "u64": "unsigned __int128"}.get(kind) or C_TYPES[DOUBLE_WIDTH[kind]]
        a, b = (self.typed(o, kind) for o in i.operands[1:3])
        return f"{C_TYPES[kind]}({wide}({a}) * {wide}({b}) >> {8 * BYTES[kind]})"

    def _mul(self, i):
        if "wide" in i.parts:
            return self.assign(i.operands[0], self._product(i, DOUBLE_WIDTH[self.operand_type(i)]))
        if "hi" in i.parts:
            return self.put(i.operands[0], self._high_product(i), self.operand_type(i))
        return self._binary(i, "mul")

    def _mul24(self, i):
        return self._binary(i, "mul")

    def _mad(self, i):
        kind = self.operand_type(i)
        if kind in FLOATS:
            return self._fma(i)
        target, addend = i.operands[0], i.operands[3]
        if "wide" in i.parts:
            wide = DOUBLE_WIDTH[kind]
            unsigned = C_TYPES[wide.replace("s", "u")]
            return self.assign(target, f"{unsigned}({self._product(i, wide)}) + {unsigned}({self.bits(addend, wide)})")
        if "hi" in i.parts:
            unsigned = kind.replace("s", "u")
            return self.put(target, f"{self._high_product(i)} + {self.typed(addend, unsigned)}", unsigned)
        kind = kind.replace("s", "u")
        a, b, c = (self.typed(o, kind) for o in i.operands[1:])
        return self.put(target, f"{a} * {b} + {c}", kind)

    def _fma(self, i):
        kind = self.operand_type(i)
        if i.opcode == "fma.rn.f32" and i.operands[0] != "_":
            return self.assign(i.operands[0], f"fused_float({', '.join(self.bits(o, kind) for o in i.operands[1:])})")
        a, b, c = (self.typed(o, kind) for o in i.operands[1:])
        return self.put(i.operands[0], self._modified(i, f"fused({a}, {b}, {c})"), kind)

    def _signed_binary(self, i, function):
        kind = self.operand_type(i)
        return self.put(
            i.operands[0],
            self._modified(i, f"{function}({self.typed(i.operands[1], kind)}, {self.typed(i.operands[2], kind)})"),
            kind,
        )

    def _div(self, i):
        return self._signed_binary(i, "divide")

    def _rem(self, i):
        return self._signed_binary(i, "remainder")

    def _min(self, i):
        return self._signed_binary(i, "minimum_nan" if "NaN" in i.parts else "minimum")

    def _max(self, i):
        return self._signed_binary(i, "maximum_nan" if "NaN" in i.parts else "maximum")

    def _unary(self, i, function):
        kind = self.operand_type(i)
        return self.put(i.operands[0], f"{function}({self.typed(i.operands[1], kind)})", kind)

    def _neg(self, i):
        kind = self.operand_type(i)
        if kind in FLOATS:
            return self._unary(i, "negate")
        return self.put(i.operands[0], f"0 - uint64_t({self.typed(i.operands[1], kind)})", kind)

    def _abs(self, i):
        return self._unary(i, "absolute")

    def _approximate(self, i):
        return self._unary(i, i.parts[0])

    _ex2 = _lg2 = _rcp = _rsqrt = _sqrt = _sin = _cos = _tanh = _approximate

    def _copysign(self, i):
        kind = self.operand_type(i)
        return self.put(
            i.operands[0], f"std::copysign({self.typed(i.operands[2], kind)}, {self.typed(i.operands[1], kind)})", kind
        )

    # ---- bits

    def _and(self, i):
        kind = self.operand_type(i)
        return self.assign(
            i.operands[0], f"{self.bits(i.operands[1], kind)} {LOGIC[i.parts[0]]} {self.bits(i.operands[2], kind)}"
        )

    _or = _xor = _and

    def _not(self, i):
        kind = self.operand_type(i)
        return self.assign(i.operands[0], ("!" if kind == "pred" else "~") + self.bits(i.operands[1], kind))

    def _shl(self, i):
        kind = self.operand_type(i)
        width, value, count = 8 * BYTES[kind], self.bits(i.operands[1], kind), self.bits(i.operands[2], "b32")
        if self.register_bytes(i.operands[2]) is None and int(count.rstrip("u"), 0) < width:
            return self.assign(i.operands[0], f"{value} << {count}")
        return self.assign(i.operands[0], f"{count} >= {width} ? 0 : {value} << ({count} & {width - 1})")

    def _shr(self, i):
        kind = self.operand_type(i)
        width, count = 8 * BYTES[kind], self.bits(i.operands[2], "b32")
        value = self.typed(i.operands[1], kind)
        if kind.startswith("s"):
            return self.put(i.operands[0], f"{value} >> ({count} >= {width} ? {width - 1} : {count})", kind)
        return self.put(i.operands[0], f"{count} >= {width} ? 0 : {value} >> ({count} & {width - 1})", kind)

    def _shf(self, i):
        low, high, count = (self.bits(o, "b32") for o in i.operands[1:])
        direction = "left" if "l" in i.parts else "right"
        return self.assign(i.operands[0], f"funnel_{direction}({low}, {high}, {count}, {int('clamp' in i.parts)})")

    def _bfe(self, i):
        kind = self.operand_type(i)
        position, length = (self.bits(o, "b32") for o in i.operands[2:])
        return self.put(i.operands[0], f"extract_bits({self.typed(i.operands[1], kind)}, {position}, {length})", kind)

    def _bfi(self, i):
        kind = self.operand_type(i)
        source, into = (self.typed(o, kind) for o in i.operands[1:3])
        position, length = (self.bits(o, "b32") for o in i.operands[3:])
        return self.assign(i.operands[0], f"insert_bits({source}, {into}, {position}, {length})")

    def _prmt(self, i):
        if len(i.parts) > 2:
            raise Unsupported(i.opcode)
        return self.assign(i.operands[0], f"permute_bytes({', '.join(self.bits(o, 'b32') for o in i.operands[1:])})")

    def _lop3(self, i):
        return self.assign(
            i.operands[0], f"logic3({', '.join(self.bits(o, 'b32') for o in i.operands[1:4])}, {i.operands[4]})"
        )

    def _popc(self, i):
        return self.assign(i.operands[0], f"__builtin_popcountll({self.bits(i.operands[1], self.operand_type(i))})")

    def _clz(self, i):
        return self.assign(i.operands[0], f"leading_zeros({self.typed(i.operands[1], self.operand_type(i))})")

    def _bfind(self, i):
        return self.assign(
            i.operands[0],
            f"find_leading({self.typed(i.operands[1], self.operand_type(i))}, {int('shiftamt' in i.parts)})",
        )

    def _brev(self, i):
        if self.operand_type(i) != "b32":
            raise Unsupported(i.opcode)
        return self.assign(i.operands[0], f"__brev({self.bits(i.operands[1], 'b32')})")

    # ---- comparisons and conversions

    def _comparison(self, i):
        kind = self.operand_type(i)
        a, b = (self.typed(o, kind) for o in i.operands[1:3])
        return f"compare_{i.parts[1]}({a}, {b})" if kind in FLOATS else f"{a} {COMPARISONS[i.parts[1]]} {b}"

    def _setp(self, i):
        if self.operand_type(i) in ("f16x2", "bf16x2"):
            raise Unsupported(i.opcode)
        targets = i.operands[0].split("|")
        logic = next((LOGIC[p] for p in i.parts[2:] if p in LOGIC), None)
        other = self.bits(i.operands[3], "pred") if logic else None
        if len(targets) == 1 and not logic:
            return self.assign(targets[0], self._comparison(i))
        values = ("c", "!c") if not logic else (f"c {logic} k", f"!c {logic} k")
        moves = " ".join(self.assign(t, v) for t, v in zip(targets, values, strict=False))
        return f"{{ const bool c = {self._comparison(i)}{f', k = {other}' if logic else ''}; {moves} }}"

    def _set(self, i):
        kinds = [p for p in i.parts if p in BYTES]
        if any(p in LOGIC for p in i.parts) or kinds[0] not in ("u32", "s32", "f32"):
            raise Unsupported(i.opcode)
        if kinds[0] == "f32":
            return self.put(i.operands[0], f"{self._comparison(i)} ? 1.0f : 0.0f", "f32")
        return self.assign(i.operands[0], f"{self._comparison(i)} ? 0xffffffffu : 0u")

    def _selp(self, i):
        kind = self.operand_type(i)
        a, b = (self.bits(o, kind) for o in i.operands[1:3])
        return self.assign(i.operands[0], f"{self.bits(i.operands[3], 'pred')} ? {a} : {b}")

    def _cvt(self, i):
        to, source = [p for p in i.parts if p in BYTES]
        target = i.operands[0]
        if to == "tf32":
            return self.assign(target, f"round_to_tf32({self.typed(i.operands[1], 'f32')})")
        if to in ("f16x2", "bf16x2"):
            half = C_TYPES[to[:-2]]
            high, low = (self.typed(o, "f32") for o in i.operands[1:3])
            relu = "relu" if "relu" in i.parts else ""
            return self.assign(target, f"uint32_t({half}({relu}({high})).bits) << 16 | {half}({relu}({low})).bits")
        value = self.typed(i.operands[1], source)
        rounding = {"rni": "nearbyint", "rzi": "trunc", "rmi": "floor", "rpi": "ceil"}
        if mode := next((p for p in i.parts if p in rounding), None):
            value = f"std::{rounding[mode]}({value if source in ('f32', 'f64') else f'float({value})'})"
        if to not in FLOATS:  # extended to the register's width
            function = f"to_integer<{C_TYPES[to]}>" if source in FLOATS else C_TYPES[to]
            return f"{self.register(target)} = {function}({value});"
        return self.put(target, self._modified(i, f"convert<{C_TYPES[to]}>({value})"), to)

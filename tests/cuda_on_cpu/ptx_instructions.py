"""The translation of each PTX instruction to a C++ statement. The functions that the C++ calls are in
include/cuda_on_cpu/ptx.h.

`InstructionTranslator` has one method for each mnemonic (`_add`, `_ld`, ...). A subclass supplies registers, symbols and
sites. Each method gets the instruction and returns C++.
"""

from __future__ import annotations

import re

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


class InstructionTranslator:
    # ---- supplied by the subclass

    def register(self, name: str) -> str:
        raise NotImplementedError

    def bits(self, operand: str, kind: str) -> str:
        """The operand's bits as an unsigned C++ expression."""
        raise NotImplementedError

    def pointer(self, operand: str, space: str) -> str:
        """An `unsigned char*` for an address operand like [%r1+4]."""
        raise NotImplementedError

    def site(self, instruction: Instruction) -> str:
        raise NotImplementedError

    # ---- helpers

    def typed(self, operand: str, kind: str) -> str:
        return f"as<{C_TYPES[kind]}>({self.bits(operand, kind)})"

    def assign(self, target: str, expression: str) -> str:
        """Of bits; the expression is an integer."""
        if target == "_":
            return f"(void)({expression});"
        return f"{self.register(target)} = {expression};"

    def put(self, target: str, expression: str, kind: str) -> str:
        if target == "_":
            return f"(void)({expression});"
        return f"put({self.register(target)}, {C_TYPES[kind]}({expression}));"

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

    def _space(self, i):
        if "shared::cta" in i.opcode:
            return "shared"
        return next((p for p in i.parts if p in ("global", "shared", "param", "local", "const")), "generic")

    def _ld(self, i):
        kind, space = self.operand_type(i), self._space(i)
        size, memory = BYTES[kind], i.operands[1]
        targets = split_operands(i.operands[0].strip("{}"))
        loads = " ".join(
            f"{{ {C_TYPES[kind]} v; memcpy((void*)&v, a + {n * size}, {size}); set({self.register(t)}, v); }}"
            for n, t in enumerate(targets)
            if t != "_"
        )
        return f"{{ const unsigned char* a = {self.pointer(memory, space)}; {self._note(i, space, 'kRead', size * len(targets))}{loads} }}"

    _ldu = _ld

    def _st(self, i):
        kind, space = self.operand_type(i), self._space(i)
        size, memory = BYTES[kind], i.operands[0]
        sources = split_operands(i.operands[1].strip("{}"))
        stores = " ".join(
            f"{{ const auto v = {self.typed(s, kind)}; memcpy(a + {n * size}, (const void*)&v, {size}); }}"
            for n, s in enumerate(sources)
        )
        return f"{{ unsigned char* a = {self.pointer(memory, space)}; {self._note(i, space, 'kWrite', size * len(sources))}{stores} }}"

    def _note(self, i, space, flags, size):
        if space in ("param", "local", "const"):
            return ""
        if {"volatile", "relaxed", "acquire", "release"} & set(i.parts):
            flags += " | kAtomic"
        return f"note_access(a, {size}, {flags}, {self.site(i)}); "

    def _prefetch(self, i):
        return ";"

    _prefetchu = _discard = _applypriority = _nanosleep = _createpolicy = _prefetch

    # ---- arithmetic

    def _binary(self, i, function):
        kind = self.operand_type(i)
        if kind not in FLOATS:
            kind = kind.replace("s", "u")  # signed overflow is defined in PTX
        expression = f"{function}({self.typed(i.operands[1], kind)}, {self.typed(i.operands[2], kind)})"
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
        return f"{C_TYPES[kind]}({self.typed(i.operands[1], self.operand_type(i))}) * {C_TYPES[kind]}({self.typed(i.operands[2], self.operand_type(i))})"

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
        a, b, c = (self.typed(o, kind) for o in i.operands[1:])
        return self.put(i.operands[0], self._modified(i, f"fused({a}, {b}, {c})"), kind)

    def _signed_binary(self, i, function):
        kind = self.operand_type(i)
        return self.put(i.operands[0], self._modified(i, f"{function}({self.typed(i.operands[1], kind)}, {self.typed(i.operands[2], kind)})"), kind)

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
        return self.put(i.operands[0], f"std::copysign({self.typed(i.operands[2], kind)}, {self.typed(i.operands[1], kind)})", kind)

    # ---- bits

    def _and(self, i):
        kind = self.operand_type(i)
        return self.assign(i.operands[0], f"{self.bits(i.operands[1], kind)} {LOGIC[i.parts[0]]} {self.bits(i.operands[2], kind)}")

    _or = _xor = _and

    def _not(self, i):
        kind = self.operand_type(i)
        return self.assign(i.operands[0], ("!" if kind == "pred" else "~") + self.bits(i.operands[1], kind))

    def _shl(self, i):
        kind = self.operand_type(i)
        width, count = 8 * BYTES[kind], self.bits(i.operands[2], "b32")
        return self.assign(i.operands[0], f"{count} >= {width} ? 0 : {self.bits(i.operands[1], kind)} << ({count} & {width - 1})")

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
        return self.assign(i.operands[0], f"logic3({', '.join(self.bits(o, 'b32') for o in i.operands[1:4])}, {i.operands[4]})")

    def _popc(self, i):
        return self.assign(i.operands[0], f"__builtin_popcountll({self.bits(i.operands[1], self.operand_type(i))})")

    def _clz(self, i):
        return self.assign(i.operands[0], f"leading_zeros({self.typed(i.operands[1], self.operand_type(i))})")

    def _bfind(self, i):
        return self.assign(i.operands[0], f"find_leading({self.typed(i.operands[1], self.operand_type(i))}, {int('shiftamt' in i.parts)})")

    def _brev(self, i):
        if self.operand_type(i) != "b32":
            raise Unsupported(i.opcode)
        return self.assign(i.operands[0], f"__brev({self.bits(i.operands[1], 'b32')})")

    # ---- comparisons and conversions

    def _comparison(self, i):
        kind = self.operand_type(i)
        a, b = (self.typed(o, kind) for o in i.operands[1:3])
        return f"compare_{i.parts[1]}({a}, {b})"

    def _setp(self, i):
        if self.operand_type(i) in ("f16x2", "bf16x2"):
            raise Unsupported(i.opcode)
        targets = i.operands[0].split("|")
        logic = next((LOGIC[p] for p in i.parts[2:] if p in LOGIC), None)
        other = self.bits(i.operands[3], "pred") if logic else None
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
        if to not in FLOATS:
            function = "to_integer" if source in FLOATS else "convert"
            return f"set({self.register(target)}, {function}<{C_TYPES[to]}>({value}));"
        return self.put(target, self._modified(i, f"convert<{C_TYPES[to]}>({value})"), to)

    # ---- barriers, warps, atomics

    def _bar(self, i):
        if "warp" in i.parts:
            return f"warp_exchange({self.bits(i.operands[0], 'b32')}, WarpOp::Sync, nullptr, 0);"
        # The place of the barrier is its site's, as text; the line in the file is part of it.
        place = f"({self.site(i)})->place, 0"
        if "red" in i.parts:
            if len(i.operands) != 3:
                raise Unsupported(i.opcode + " of a part of the block")
            target, _, predicate = i.operands
            kind = next(k for p, k in {"popc": "Count", "and": "And", "or": "Or"}.items() if p in i.parts)
            return self.assign(target, f"barrier(BarrierKind::{kind}, {self.bits(predicate, 'pred')}, {place})")
        if i.parts[1] != "sync" or i.operands != ["0"]:
            raise Unsupported(i.opcode + " other than that of __syncthreads")
        return f"barrier(BarrierKind::Plain, 0, {place});"

    _barrier = _bar

    def _fence(self, i):
        return ";" if "cta" in i.parts else "note_fence();"

    _membar = _fence

    def _shfl(self, i):
        value, offset, clamp, mask = (self.bits(o, "b32") for o in i.operands[1:])
        targets = i.operands[0].split("|")
        moves = " ".join(self.assign(t, v) for t, v in zip(targets, ("v", "p"), strict=False) if t != "_")
        mode = i.parts[2][0]
        return f"{{ bool p; const uint32_t v = shuffle('{mode}', {value}, {offset}, {clamp}, {mask}, p); {moves} }}"

    def _vote(self, i):
        predicate, mask = self.bits(i.operands[1], "pred"), self.bits(i.operands[2], "b32")
        function = {"ballot": "__ballot_sync", "any": "__any_sync", "all": "__all_sync"}[i.parts[2]]
        return self.assign(i.operands[0], f"{function}({mask}, {predicate})")

    def _match(self, i):
        if "any" not in i.parts:
            raise Unsupported(i.opcode)
        value, mask = self.typed(i.operands[1], self.operand_type(i)), self.bits(i.operands[2], "b32")
        return self.assign(i.operands[0], f"__match_any_sync({mask}, {value})")

    def _redux(self, i):
        value, mask = self.typed(i.operands[1], self.operand_type(i)), self.bits(i.operands[2], "b32")
        return self.assign(i.operands[0], f"__reduce_{i.parts[2]}_sync({mask}, {value})")

    def _activemask(self, i):
        return self.assign(i.operands[0], "active_mask()")

    def _atom(self, i):
        operation = next(p for p in i.parts if p in ("add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"))
        target, operands = (i.operands[0], i.operands[1:]) if i.parts[0] == "atom" else (None, i.operands)
        kind = self.operand_type(i)
        kind = {"b16": "u16", "b32": "u32", "b64": "u64"}.get(kind, kind)
        pointer = self.pointer(operands[0], self._space(i))
        values = ", ".join(self.typed(o, kind) for o in operands[1:])
        call = f"atomic_{operation}<{C_TYPES[kind]}>({pointer}, {values}, {self.site(i)})"
        fence = "note_fence(); " if {"release", "acq_rel"} & set(i.parts) else ""
        return fence + (f"set({self.register(target)}, {call});" if target and target != "_" else f"{call};")

    _red = _atom

    # ---- asynchronous copies and tensor cores

    def _cp(self, i):
        if i.parts[1] != "async" or "bulk" in i.parts or "mbarrier" in i.parts:
            raise Unsupported(i.opcode)
        if "commit_group" in i.parts:
            return "async_copy_commit();"
        if "wait_all" in i.parts:
            return "async_copy_wait_all();"
        if "wait_group" in i.parts:
            return f"async_copy_wait({i.operands[0]});"
        target, source = self.pointer(i.operands[0], "shared"), self.pointer(i.operands[1], "global")
        size = int(i.operands[2], 0)
        # The fourth operand is the size of the source, or (a 64-bit register) a cache policy.
        has_size = len(i.operands) > 3 and not i.operands[3].startswith("%rd")
        source_size = self.bits(i.operands[3], "b32") if has_size else str(size)
        return f"async_copy({target}, {source}, {size}, {source_size}, {self.site(i)});"

    def _ldmatrix(self, i):
        targets = split_operands(i.operands[0].strip("{}"))
        if "m8n8" not in i.parts:
            raise Unsupported(i.opcode)
        address = self.pointer(i.operands[1], "shared")
        moves = " ".join(f"{self.register(t)} = m[{n}];" for n, t in enumerate(targets))
        return f"{{ uint32_t m[4]; load_matrix(m, {len(targets)}, {int('trans' in i.parts)}, {address}, {self.site(i)}); {moves} }}"

    def _mma(self, i):
        shape = next(p for p in i.parts if re.fullmatch(r"m\d+n\d+k\d+", p))
        kinds = [p for p in i.parts if p in BYTES]
        k = int(shape.split("k")[1])
        supported = {("f16", 8), ("f16", 16), ("bf16", 8), ("bf16", 16), ("tf32", 8)}
        if not shape.startswith("m16n8k") or kinds[0] != "f32" or (kinds[1], k) not in supported:
            raise Unsupported(i.opcode)
        d, *abc = (split_operands(o.strip("{}")) for o in i.operands)
        arrays = ", ".join(f"{n}[] = {{{', '.join(self.bits(r, 'b32') for r in o)}}}" for n, o in zip("abc", abc, strict=True))
        targets = ", ".join(f"&{self.register(r)}" for r in d)
        return f"{{ uint32_t* const d[] = {{{targets}}}; const uint32_t {arrays}; mma(MmaType::{kinds[1].upper()}, {k}, d, a, b, c); }}"

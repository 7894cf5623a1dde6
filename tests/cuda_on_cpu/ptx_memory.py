"""The translation of PTX instructions that meet memory or other threads: loads and stores, atomics, barriers, warp
operations, asynchronous copies, tensor cores. Each access names its site, so that the checker can say where it was.
"""

from __future__ import annotations

import re

from .ptx_instructions import C_TYPES, InstructionTranslator
from .ptx_parser import BYTES, Instruction, Unsupported, split_operands


class MemoryTranslator(InstructionTranslator):
    # ---- supplied by the subclass

    def pointer(self, operand: str, space: str) -> str:
        """An `unsigned char*` for an address operand like [%r1+4]."""
        raise NotImplementedError

    def site(self, instruction: Instruction) -> str:
        """A `const SiteName*`."""
        raise NotImplementedError

    # ---- loads and stores

    def _space(self, i):
        if "shared::cta" in i.opcode:
            return "shared"
        return next((p for p in i.parts if p in ("global", "shared", "param", "local", "const")), "generic")

    def _ld(self, i):
        kind, space = self.operand_type(i), self._space(i)
        size, memory = BYTES[kind], i.operands[1]
        targets = split_operands(i.operands[0].strip("{}"))
        loads = " ".join(
            f"memcpy(&{self.register(t)}, a + {n * size}, {size});"
            if self.register_bytes(t) == size
            else f"{{ {C_TYPES[kind]} v; memcpy((void*)&v, a + {n * size}, {size}); set({self.register(t)}, v); }}"
            for n, t in enumerate(targets)
            if t != "_"
        )
        note = self._note(i, space, "kRead", size * len(targets))
        return f"{{ const unsigned char* a = {self.pointer(memory, space)}; {note}{loads} }}"

    _ldu = _ld

    def _st(self, i):
        kind, space = self.operand_type(i), self._space(i)
        size, memory = BYTES[kind], i.operands[0]
        sources = split_operands(i.operands[1].strip("{}"))
        value = C_TYPES[kind] + " v"
        stores = " ".join(
            f"memcpy(a + {n * size}, &{self.register(s)}, {size});"
            if self.register_bytes(s) == size
            else f"{{ const {value} = {self.typed(s, kind)}; memcpy(a + {n * size}, (const void*)&v, {size}); }}"
            for n, s in enumerate(sources)
        )
        note = self._note(i, space, "kWrite", size * len(sources))
        return f"{{ unsigned char* a = {self.pointer(memory, space)}; {note}{stores} }}"

    def _note(self, i, space, flags, size):
        if space in ("param", "local", "const"):
            return ""
        if {"volatile", "relaxed", "acquire", "release"} & set(i.parts):
            flags += " | kAtomic"
        return f"note_access(a, {size}, {flags}, {self.site(i)}); "

    def _prefetch(self, i):
        return ";"

    _prefetchu = _discard = _applypriority = _nanosleep = _createpolicy = _prefetch

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
        operation = next(
            p for p in i.parts if p in ("add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec")
        )
        target, operands = (i.operands[0], i.operands[1:]) if i.parts[0] == "atom" else (None, i.operands)
        kind = self.operand_type(i)
        kind = {"b16": "u16", "b32": "u32", "b64": "u64"}.get(kind, kind)
        pointer = self.pointer(operands[0], self._space(i))
        if operands[1:] and operands[1].startswith("{"):  # red.add.v2, .v4
            if target or operation != "add":
                raise Unsupported(i.opcode)
            values = [self.typed(o, kind) for o in split_operands(operands[1].strip("{}"))]
            elements = f"Elements<{C_TYPES[kind]}, {len(values)}>{{{{{', '.join(values)}}}}}"
            return f"atomic_add({pointer}, {elements}, {self.site(i)});"
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
        arguments = f"m, {len(targets)}, {int('trans' in i.parts)}, {address}, {self.site(i)}"
        return f"{{ uint32_t m[4]; load_matrix({arguments}); {moves} }}"

    def _mma(self, i):
        shape = next(p for p in i.parts if re.fullmatch(r"m\d+n\d+k\d+", p))
        kinds = [p for p in i.parts if p in BYTES]
        k = int(shape.split("k")[1])
        supported = {("f16", 8), ("f16", 16), ("bf16", 8), ("bf16", 16), ("tf32", 8)}
        if not shape.startswith("m16n8k") or kinds[0] != "f32" or (kinds[1], k) not in supported:
            raise Unsupported(i.opcode)
        d, *abc = (split_operands(o.strip("{}")) for o in i.operands)
        arrays = ", ".join(
            f"{n}[] = {{{', '.join(self.bits(r, 'b32') for r in o)}}}" for n, o in zip("abc", abc, strict=True)
        )
        targets = ", ".join(f"&{self.register(r)}" for r in d)
        call = f"mma(MmaType::{kinds[1].upper()}, {k}, d, a, b, c);"
        return f"{{ uint32_t* const d[] = {{{targets}}}; const uint32_t {arrays}; {call} }}"

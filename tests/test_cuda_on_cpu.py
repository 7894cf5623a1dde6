"""The emulator's own tests: kernels that are right run without a report in every order, and every seeded bug is found.

The kernels are in cuda_on_cpu/semantics.cu. "checked" modes see every access to memory; the mode fast sees none.
"""

import ctypes
import math
import re
import threading

import numpy as np
import pytest
from cuda_on_cpu import build, ptx2cpp, ptx_parser, runtime

SUCCESS, INVALID_CONFIGURATION, LAUNCH_FAILURE = 0, 9, 719
CHECKED = ("check", "ptx")


class Kernels:
    def __init__(self, mode):
        path = build.build(
            "semantics",
            [build.HERE / "semantics.cu"],
            mode=mode,
            include_dirs=[build.REPOSITORY / "csrc"],
            optimize="-O1",
        )
        self.mode = mode
        self.library = ctypes.CDLL(str(path))

    def _call(self, function, name, arrays, n):
        runtime.reset()
        for argument, array in arrays.items():
            runtime.register_memory(array.ctypes.data, array.nbytes, argument)
        try:
            addresses = [ctypes.c_void_p(array.ctypes.data) for array in arrays.values()]
            return function(name.encode(), *addresses, ctypes.c_int(n))
        finally:
            for array in arrays.values():
                runtime.unregister_memory(array.ctypes.data)

    def run(self, name, n=0, order="ascending", seed=1, size=256, values=None):
        """Runs a kernel on fresh arrays; returns its status and the array `out`."""
        values = np.arange(1, 1025, dtype=np.float32) if values is None else values
        arrays = {
            "in": aligned(values),
            "out": aligned(np.zeros(size, np.float32)),
            "extra": aligned(np.zeros(64, np.float32)),
        }
        runtime.set_order(order, seed)
        status = self._call(self.library.run, name, arrays, n)
        return status, arrays["out"]

    def product(self, name, a, b_t):
        arrays = {"a": aligned(a), "b_t": aligned(b_t), "out": aligned(np.zeros((16, 8), np.float32))}
        runtime.set_order("shuffled", 3)
        status = self._call(self.library.run_product, name, arrays, a.shape[1])
        return status, arrays["out"]


def aligned(array):
    """A copy at an address that torch or cudaMalloc might have given."""
    buffer = np.empty(array.nbytes + 256, np.uint8)
    start = -buffer.ctypes.data % 256
    result = buffer[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    result[...] = array
    return result


_built: dict = {}


def kernels_of(mode):
    if reason := build.why_unavailable(mode):
        pytest.skip(reason)
    if mode not in _built:
        _built[mode] = Kernels(mode)
    return _built[mode]


@pytest.fixture(params=build.MODES)
def kernels(request):
    return kernels_of(request.param)


@pytest.fixture(params=CHECKED)
def checked(request):
    return kernels_of(request.param)


@pytest.fixture(autouse=True)
def _forget():
    yield
    if "fast" in _built or "check" in _built or "ptx" in _built:
        runtime.set_order()
        runtime.reset()


# ---- what is right stays silent, in every order

IN = np.arange(1, 1025, dtype=np.float32)
LANES = np.arange(32)


def _shuffle_with_masks():
    value = np.where(LANES < 16, np.where(LANES < 12, LANES + 4, LANES), LANES ^ 1)
    return np.tile(value * 100 + np.sum(value % 2), 2)


def _warp_votes():
    return np.full(32, 1 + 2 + 0 + 8 * 4 + 100 * LANES.sum() + 100000 * 9)


RIGHT = {
    ("reverse", 1): IN[63::-1],
    ("swap_neighbours", 1): np.arange(64) ^ 1,
    ("dynamic_shared_memory", 0): np.ones(64),
    ("barrier_votes", 40): np.full(64, 40 * 100 + 10),
    ("barrier_votes", 64): np.full(64, 64 * 100 + 11),
    ("barrier_after_exits", 33): np.arange(64) < 33,
    ("copy", 200): IN[:200],
    ("copy_vectors", 4): IN[4:68],
    ("copy_strided", 8): IN[:256:8],
    ("sum_with_atomic", 0): IN[:256].sum(),
    ("transpose", 0): IN.reshape(32, 32).T.ravel(),
    ("transpose", 1): IN.reshape(32, 32).T.ravel(),
    ("sum_by_last_block", 1): IN[:256].sum(),
    ("read_constants", 0): np.tile([4, 2, 3, 1], 8),
    ("shuffle_with_masks", 0): _shuffle_with_masks(),
    ("shuffle_types", 0): 1.5 + np.maximum(LANES - 1, 0) + (LANES ^ 1),
    ("warp_votes", 0): _warp_votes(),
    ("ballot_with_exited_lanes", 20): np.where(LANES < 20, 20, 0),
    ("async_pipeline", 0): sum(IN[128 * i + 96 : 128 * i + 128][::-1] for i in range(4)),
    ("async_zero_fill", 20): np.where(LANES < 20, IN[:32], 0),
    ("shared_with_attribute", 60000): np.ones(64),
}
INTEGER_RESULTS = {"barrier_votes", "shuffle_with_masks", "warp_votes", "ballot_with_exited_lanes"}


@pytest.mark.parametrize("order", runtime.ORDERS)
@pytest.mark.parametrize(("name", "n"), RIGHT, ids=lambda v: str(v))
def test_right_kernels_give_no_report(kernels, name, n, order):
    status, out = kernels.run(name, n, order, size=1024)
    assert runtime.errors() == []
    assert status == SUCCESS
    result = out.view(np.int32) if name in INTEGER_RESULTS else out
    expected = np.atleast_1d(RIGHT[name, n])
    np.testing.assert_allclose(result[: len(expected)], expected, rtol=1e-6)


@pytest.mark.parametrize("order", runtime.ORDERS)
def test_atomics(kernels, order):
    status, out = kernels.run("atomics", order=order)
    assert (status, runtime.errors()) == (SUCCESS, [])
    assert out[0] == 64
    assert out[2:4].view(np.float64)[0] == 32
    assert out[4:7].view(np.int32).tolist() == [128, 63, -63]
    assert out[8:12].view(np.uint32).tolist() == [64, 0xFFFFFFFF, 77, 9]
    assert out[12:13].view(np.float16).tolist() == [64, 32]
    assert (out[13:14].view(np.uint16).astype(np.uint32) << 16).view(np.float32).tolist() == [64, 32]


def test_intrinsics(kernels):
    x = np.linspace(-3, 3, 64, dtype=np.float32)
    status, out = kernels.run("intrinsics", values=x)
    assert (status, runtime.errors()) == (SUCCESS, [])

    def expected(i, v):
        bf16 = (np.float32(v).view(np.uint32) + 0x7FFF + (np.float32(v).view(np.uint32) >> 16 & 1)) & 0xFFFF0000
        hundred = int(np.float32(v) * np.float32(100))
        bits = i.bit_length()
        terms = [
            math.exp(v), math.log(abs(v) + 1), 1 / math.sqrt(v * v + 1), math.erf(v), math.tanh(v), v * v + 1,
            1 / (v * v + 2), v / 3, float(np.rint(v)), min(v, 0.5), math.sqrt(abs(v)),
            float(np.uint32(bf16).view(np.float32)), float(np.float16(v)), 2 * v + 1,
            math.fmod(hundred, 7), bin(i).count("1"), 32 - bits, (i & -i).bit_length(),
            int(f"{i:032b}"[::-1], 2) >> 27, math.floor(v), max(i, 3), (abs(v) + 0.1) ** 1.5, v, v,
        ]  # fmt: skip
        return sum(terms)

    np.testing.assert_allclose(out[:64], [expected(i, float(v)) for i, v in enumerate(x)], rtol=2e-6, atol=2e-5)


@pytest.mark.parametrize("k", [16, 48])
@pytest.mark.parametrize(
    "name", ["k16_float16", "k16_bfloat16", "k16_transposed", "k8_float16", "k8_bfloat16", "k8_tf32"]
)
def test_tensor_core_products(kernels, name, k):
    random = np.random.default_rng(k)
    a, b_t = (random.integers(-16, 17, shape).astype(np.float32) / 8 for shape in ((16, k), (8, k)))
    if "bfloat16" in name:
        stored = [(m.view(np.uint32) >> 16).astype(np.uint16) for m in (a, b_t)]  # exact: few bits
    else:
        stored = [m.astype(np.float32 if "tf32" in name else np.float16) for m in (a, b_t)]
    status, out = kernels.product(name, *stored)
    assert (status, runtime.errors()) == (SUCCESS, [])
    np.testing.assert_array_equal(out, a @ b_t.T)


# ---- every seeded bug is reported

BUGS = {
    # kernel, n: what the report must say
    ("reverse", 0): "uninitialised shared memory is read|race",
    ("swap_neighbours", 0): "race|uninitialised shared memory",
    ("uninitialised_shared", 0): "uninitialised shared memory is read at semantics.cu:",
    ("dynamic_shared_memory", 1): "dynamic shared memory out of bounds: read of 4 bytes at offset 256 of 256 bytes",
    ("dynamic_shared_memory", -1): "dynamic shared memory out of bounds: read of 4 bytes at offset -4 of 256 bytes",
    ("copy_strided", 64): "invalid global read of 4 bytes at semantics.cu:",
    ("copy_vectors", 1): "misaligned read of 16 bytes in global memory at semantics.cu:",
    (
        "all_write_one",
        0,
    ): "race .write after write. on global memory between semantics.cu:.* and semantics.cu:.* same block",
    ("sum_without_atomic", 0): "race .* on global memory .* different blocks",
    ("sum_by_last_block", 0): "race .read after write. on global memory .* different blocks",
    ("async_pipeline", 1): "asynchronous copy of .* is under way",
    ("async_pipeline", 2): "asynchronous copy of .* is under way",
    ("async_pipeline", 3): "race|asynchronous copy|uninitialised",
}
BUGS_SEEN_IN_EVERY_MODE = {
    ("divergent_barrier", 0): "barrier divergence in block",
    ("deadlock", 0): "deadlock in block .0,0,0.: 64 of 64 threads cannot go on",
    ("shuffle_from_exited_lane", 20): "shuffle reads a lane that has exited",
}
BUGS_OF_LAUNCHES = {
    ("threads", 1025): "1025 threads in a block, at most 1024",
    ("cooperative", 0): "cooperative launches are not emulated",
    ("grid_y", 65536): "the grid's limits",
    ("shared_without_attribute", 100 * 1024): "without cudaFuncAttributeMaxDynamicSharedMemorySize",
    ("shared_with_attribute", 227 * 1024 + 4): "a block has at most 232448",
}


def reported(pattern):
    return any(re.search(pattern, message) for message in runtime.errors())


@pytest.mark.parametrize("order", runtime.ORDERS)
@pytest.mark.parametrize(("name", "n"), BUGS, ids=lambda v: str(v))
def test_bugs_are_reported(checked, name, n, order):
    checked.run(name, n, order)
    assert reported(BUGS[name, n]), runtime.errors()


@pytest.mark.parametrize("order", runtime.ORDERS)
@pytest.mark.parametrize(("name", "n"), BUGS_SEEN_IN_EVERY_MODE, ids=lambda v: str(v))
def test_bugs_are_reported_in_every_mode(kernels, name, n, order):
    kernels.run(name, n, order)
    assert reported(BUGS_SEEN_IN_EVERY_MODE[name, n]), runtime.errors()


@pytest.mark.parametrize(("name", "n"), BUGS_OF_LAUNCHES, ids=lambda v: str(v))
def test_bad_launches_are_refused(kernels, name, n):
    status, _ = kernels.run(name, n)
    assert status != SUCCESS
    assert reported(BUGS_OF_LAUNCHES[name, n]), runtime.errors()


def test_launch_bounds_are_kept():
    """Only PTX tells them."""
    kernels = kernels_of("ptx")
    assert kernels.run("copy_bounded", 64)[0] == SUCCESS
    assert kernels.run("copy_bounded", 96)[0] == INVALID_CONFIGURATION
    assert reported("96 threads in a block, __launch_bounds__ allows 64")


def test_launches_from_another_host_thread(kernels):
    """autograd has threads of its own; each has its own copy of the shared memory."""
    found = []

    def launch():
        for name in ("reverse", "transpose", "sum_by_last_block", "async_pipeline"):
            n = 0 if name == "async_pipeline" else 1
            found.append(kernels.run(name, n, size=1024)[0])
            found.extend(runtime.errors())

    thread = threading.Thread(target=launch)
    thread.start()
    thread.join()
    assert found == [SUCCESS] * 4


def test_an_unknown_instruction_is_named():
    text = """
.version 9.0
.target sm_90
.address_size 64
.visible .entry kernel(.param .u64 kernel_param_0)
{
\t.reg .b32 %r<2>;
\tfrobnicate.sync.b32 %r1, 3;
\tret;
}
"""
    with pytest.raises(ptx_parser.Unsupported, match=r"kernel, \?: no translation of 'frobnicate.sync.b32 %r1, 3'"):
        ptx2cpp.translate(text)


def test_write_past_the_end_is_stopped(checked):
    status, _ = checked.run("copy", 256, size=250)
    assert status == LAUNCH_FAILURE
    assert reported("invalid global write of 4 bytes at semantics.cu:.*: 0 bytes past the end of 'out' .1000 bytes.")


@pytest.mark.parametrize(("name", "n"), [("reverse", 0), ("async_pipeline", 1)])
def test_fast_mode_gives_wrong_results_for_missing_synchronisation(name, n):
    """Without a report, but never by luck right: shared memory begins as NaN, and asynchronous copies arrive late."""
    kernels = kernels_of("fast")
    _, right = kernels.run(name, 1 - n if name == "reverse" else 0)
    _, wrong = kernels.run(name, n)
    assert not np.array_equal(right, wrong)


def test_memory_that_is_not_registered_is_no_error_while_none_is():
    kernels = kernels_of("check")
    runtime.reset()
    x = aligned(IN)
    out = np.zeros(256, np.float32)
    address = [ctypes.c_void_p(a.ctypes.data) for a in (x, out, out)]
    assert kernels.library.run(b"copy", *address, 200) == SUCCESS
    assert runtime.errors() == []
    np.testing.assert_array_equal(out[:200], IN[:200])


# ---- counts


def site(operation, space="global"):
    (found,) = [s for s in runtime.sites() if s.operation == operation and s.space == space]
    return found


@pytest.mark.parametrize(("stride", "sectors"), [(1, 4), (2, 8), (8, 32), (16, 32)])
def test_sectors_of_a_strided_load(checked, stride, sectors):
    checked.run("copy_strided", stride)
    load = site("load")
    assert (load.requests, load.lanes, load.units, load.ideal_units) == (1, 32, sectors, 4)
    totals = runtime.totals()
    assert totals.unique_bytes_read == 32 * sectors
    assert (totals.unique_bytes_written, totals.global_bytes) == (128, 256)


@pytest.mark.parametrize(("padding", "wavefronts"), [(0, 32), (1, 1)])
def test_wavefronts_of_a_transpose(checked, padding, wavefronts):
    checked.run("transpose", padding, size=1024)
    load, store = site("load", "shared"), site("store", "shared")
    assert (load.requests, load.units_per_request) == (32, wavefronts)
    assert (store.requests, store.units_per_request) == (32, 1)


def test_vector_accesses_are_one_request(checked):
    checked.run("copy_vectors", 8)
    load = site("load")
    assert (load.bytes, load.requests, load.lanes, load.units, load.ideal_units) == (16, 1, 16, 8, 8)


def test_unique_bytes_count_each_sector_once(checked):
    checked.run("sum_with_atomic")
    totals = runtime.totals()
    assert totals.unique_bytes_read == 256 * 4 + 32
    assert totals.unique_bytes_written == 32
    assert totals.block_bytes_written == 4 * 32


def test_instruction_counts():
    kernels = kernels_of("ptx")
    kernels.product("k8_tf32", np.ones((16, 16), np.float32), np.ones((8, 16), np.float32))
    (counts,) = runtime.instructions()
    assert (counts.launches, counts.warps) == (1, 1)
    assert counts.by_class["mma"] == 2
    assert counts.by_class["ld.global"] == 2 * 6
    assert counts.thread_instructions == 32 * counts.warp_instructions


def test_report_is_readable(checked):
    checked.run("reverse", 0)
    text = runtime.report()
    assert "ERROR" in text
    assert "semantics.cu:" in text


# ---- with torch


@pytest.mark.parametrize("mode", build.MODES)
def test_host_code_registers_for_cpu_tensors(mode):
    """The worked example: a .cu and a .cpp that registers it through the stable ABI, run on CPU tensors."""
    torch = pytest.importorskip("torch", minversion="2.10")
    if reason := build.why_unavailable(mode):
        pytest.skip(reason)
    example = build.HERE / "example"
    library = build.build(
        f"example_{mode}",
        [example / "scaled_add.cu"],
        [example / "scaled_add_cuda.cpp"],
        mode=mode,
        include_dirs=[example, build.REPOSITORY / "csrc"],
        defines=["TORCH_TARGET_VERSION=0x020a000000000000", f"EXAMPLE_NAMESPACE=cuda_on_cpu_example_{mode}"],
    )
    torch.ops.load_library(library)
    op = getattr(torch.ops, f"cuda_on_cpu_example_{mode}").scaled_add
    x, y = torch.randn(1000), torch.randn(1000)
    for order in runtime.ORDERS:
        with runtime.no_errors(order):
            out = op(x, y, 2.0)
        torch.testing.assert_close(out, 2 * x + y)
    if mode in CHECKED:
        with pytest.raises(RuntimeError, match="cudaErrorLaunchFailure: invalid global read"):
            op(x, y[:900], 2.0)
        assert reported("invalid global read of 4 bytes at scaled_add.cu:.*past the end of 'y'")

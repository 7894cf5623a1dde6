"""Programs that are saved and run elsewhere: torch.export, AOTInductor, decompositions, ONNX."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastconv
import pytest
import torch
from operator_examples import EVERY, EXAMPLES, rand
from torch import Tensor


class Module(torch.nn.Module):
    """torch.export takes modules."""

    def __init__(self, *functions: Callable[..., Tensor]) -> None:
        super().__init__()
        self.functions = functions

    def forward(self, *arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(function(*of_one) for function, of_one in zip(self.functions, arguments))


def operators() -> set[str]:
    """Every operator of the namespace that is not a part of another's derivative."""
    names = {
        schema.name.partition("::")[2] for schema in torch._C._jit_get_all_schemas() if "fastconv::" in schema.name
    }
    return {name for name in names if not name.startswith("_")}


def targets(program: torch.export.ExportedProgram) -> set[str]:
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


def test_every_operator_can_be_taken_elsewhere() -> None:
    packets = {getattr(torch.ops.fastconv, name).default for name in operators()}
    assert EXAMPLES.keys() == operators()
    assert fastconv.decompositions.table().keys() == packets
    assert fastconv.onnx.translation_table().keys() == packets


@pytest.mark.parametrize(("function", "arguments"), EVERY)
def test_decompositions(function: Callable[..., Tensor], arguments: tuple[Tensor, ...]) -> None:
    program = torch.export.export(Module(function), (arguments,))
    assert any("fastconv" in target for target in targets(program))
    program = program.run_decompositions(fastconv.decompositions.table())
    assert not any("fastconv" in target for target in targets(program))
    torch.testing.assert_close(program.module()(arguments)[0], function(*arguments))


def everything() -> tuple[Module, tuple[tuple[Tensor, ...], ...]]:
    examples = [example for examples in EXAMPLES.values() for example in examples]
    return Module(*(function for function, _ in examples)), tuple(arguments for _, arguments in examples)


RUN_AGAIN = """
import sys, torch, fastconv
arguments, expected = torch.load(sys.argv[2])
if sys.argv[1].endswith(".pt2") and "inductor" in sys.argv[1]:
    run = torch._inductor.aoti_load_package(sys.argv[1])
else:
    run = torch.export.load(sys.argv[1]).module()
torch.testing.assert_close(tuple(run(*arguments)), expected)
"""


def run_in_another_process(program: Path, tmp_path: Path) -> None:
    module, arguments = everything()
    torch.save((arguments, module(*arguments)), tmp_path / "data.pt")
    command = [sys.executable, "-c", RUN_AGAIN, str(program), str(tmp_path / "data.pt")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


def test_export_saved_and_loaded(tmp_path: Path) -> None:
    module, arguments = everything()
    torch.export.save(torch.export.export(module, arguments), tmp_path / "exported.pt2")
    run_in_another_process(tmp_path / "exported.pt2", tmp_path)


def test_aot_inductor(tmp_path: Path) -> None:
    module, arguments = everything()
    program = torch.export.export(module, arguments)
    file = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "inductor.pt2"))
    run_in_another_process(Path(file), tmp_path)


def onnx_session(module: torch.nn.Module, arguments: Any, **options: Any) -> Any:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    table = fastconv.onnx.translation_table()
    program = torch.onnx.export(module.eval(), arguments, custom_translation_table=table, verbose=False, **options)
    assert {node.domain for node in program.model.graph} <= {""}  # nothing but standard nodes
    file = io.BytesIO()
    program.save(file)
    return runtime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(("function", "arguments"), EVERY)
def test_onnx(function: Callable[..., Tensor], arguments: tuple[Tensor, ...]) -> None:
    session = onnx_session(Module(function), (arguments,))
    names = [input.name for input in session.get_inputs()]
    [output] = session.run(None, {name: value.numpy() for name, value in zip(names, arguments)})
    torch.testing.assert_close(torch.from_numpy(output), function(*arguments), rtol=1e-4, atol=1e-5)


def test_onnx_of_any_batch_and_size() -> None:
    class Unit(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.depthwise = fastconv.nn.DepthwiseConv2d(12, 12, 3, padding=1)
            self.grouped = fastconv.nn.GroupedConv2d(12, 12, 1, groups=3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.depthwise(fastconv.channel_shuffle(self.grouped(x), 3))
            return fastconv.concat_shuffle([x, y], 2)

    unit, any_size = Unit(), torch.export.Dim.DYNAMIC
    session = onnx_session(unit, (rand(2, 12, 6, 5),), dynamic_shapes=({0: any_size, 2: any_size, 3: any_size},))
    for shape in ((2, 12, 6, 5), (3, 12, 7, 9)):
        x = rand(*shape)
        [output] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(output), unit(x), rtol=1e-4, atol=1e-5)

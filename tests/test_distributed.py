"""Two processes give the result of one: DTensor's sharding rules, DDP, FSDP (distributed_worker.py is each process)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")

WORKER = Path(__file__).parent / "distributed_worker.py"


@pytest.mark.parametrize("check", ["sharding", "training", "optimized"])
def test_two_processes(check: str, tmp_path: Path) -> None:
    commands = [[sys.executable, str(WORKER), check, str(rank), str(tmp_path / "rendezvous")] for rank in range(2)]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for command in commands
    ]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(text[-4000:] for text in outputs)


def test_every_operator_has_a_rule_and_an_example() -> None:
    script = (
        "import torch, distributed_worker\n"
        "from torch.distributed.tensor import DTensor\n"
        "schemas = [schema.name.split('::') for schema in torch._C._jit_get_all_schemas()]\n"
        "names = [name for namespace, name in schemas if namespace == 'fastconv']\n"
        "strategies = DTensor._op_dispatcher.sharding_propagator.op_strategy_funcs\n"
        "rules = {operator.name().partition('::')[2] for operator in strategies}\n"
        "examples = {name.partition(',')[0] for name in distributed_worker.EXAMPLES}\n"
        "print(sorted(set(names) - rules), sorted(n for n in names if n[0] != '_' and n not in examples))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=WORKER.parent, capture_output=True, text=True, check=True)
    # Those have rules of another kind: see fastconv/distributed.py.
    assert done.stdout.strip() == "['_concat_shuffle_input_grad', '_deform_conv2d_input_grad'] []"

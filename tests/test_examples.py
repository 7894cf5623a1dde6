"""The examples train, resume to the bit, and reach what they promise."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("sklearn")
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _restore_determinism() -> Any:
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def digits() -> Any:
    sys.path.insert(0, str(ROOT))
    try:
        from examples import digits
    finally:
        sys.path.remove(str(ROOT))
    return digits


def run(digits: Any, network: str, folder: Path, *more: str) -> dict[str, Any]:
    """A few epochs on a few images; the checkpoint."""
    digits.main([network, "--images", "96", "--batch-size", "32", "--output", str(folder), *more])
    assert (folder / f"digits_{network}.png").stat().st_size > 1000
    return torch.load(folder / f"digits_{network}.pt")


@pytest.mark.parametrize("network", ["resnest", "condensenet"])
def test_a_resumed_run_is_the_whole_run(digits: Any, network: str, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    whole = run(digits, network, tmp_path / "whole", "--epochs", "3")
    assert len(whole["history"]) == 3 and whole["history"][2]["loss"] < whole["history"][0]["loss"]

    def stop(path: Path, save: Any = digits.Run.save) -> Any:
        def save_and_stop(self: Any, path: Path) -> None:
            save(self, path)
            if len(self.history) == 2:
                raise KeyboardInterrupt

        return save_and_stop

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(digits.Run, "save", stop(tmp_path))
        run(digits, network, tmp_path / "parts", "--epochs", "3")
    resumed = run(digits, network, tmp_path / "parts", "--epochs", "3", "--resume")
    assert resumed["history"] == whole["history"]
    assert all(torch.equal(x, whole["model"][name]) for name, x in resumed["model"].items())


def test_condensenet_is_written_as_grouped_convolutions(digits: Any, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    run(digits, "condensenet", tmp_path, "--epochs", "1")
    assert "with the same classes" in capsys.readouterr().out
    import fastconv

    model = fastconv.models.create_model(
        "condensenet_74", layers=(4, 4, 4), growth_rates=(8, 16, 32), num_classes=10, in_chans=1, small_images=True,
        condensed=True,
    )  # fmt: skip
    model.load_state_dict(torch.load(tmp_path / "digits_condensed.pt"))


@pytest.mark.long
@pytest.mark.parametrize("network", ["resnest", "condensenet"])
def test_accuracy(digits: Any, network: str, tmp_path: Path) -> None:
    assert digits.main([network, "--output", str(tmp_path)]) == 0

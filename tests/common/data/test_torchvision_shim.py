import importlib
import sys
from types import ModuleType

import pytest
import torch

from common.data.torchvision_shim import import_torchvision

NMS = "operator torchvision::nms does not exist"


@pytest.fixture
def modules(monkeypatch):
    """A stand-in for sys.modules without torchvision."""
    modules = {name: module for name, module in sys.modules.items() if not name.startswith("torchvision")}
    monkeypatch.setattr(sys, "modules", modules)
    return modules


def fail_first_with(message, modules, monkeypatch):
    """Let the first import fail half-way as torchvision's does, and the second one work."""
    calls = []

    def import_module(name):
        calls.append(name)
        if len(calls) == 1:
            modules["torchvision.extension"] = ModuleType("torchvision.extension")
            raise RuntimeError(message)
        return ModuleType(name)

    monkeypatch.setattr(importlib, "import_module", import_module)
    return calls


def test_installed_torchvision_is_importable():
    assert hasattr(import_torchvision().datasets, "CIFAR100")


def test_cpu_torch_with_cuda_torchvision_is_mended(modules, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    calls = fail_first_with(NMS, modules, monkeypatch)
    assert import_torchvision().__name__ == "torchvision"
    assert calls == ["torchvision", "torchvision"]
    assert "torchvision.extension" not in modules
    assert vars(modules["torchvision._meta_registrations"]).get("__file__") is None


@pytest.mark.parametrize(("cuda", "message"), [("13.0", NMS), (None, "another fault")])
def test_other_failures_pass_through(modules, monkeypatch, cuda, message):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    calls = fail_first_with(message, modules, monkeypatch)
    with pytest.raises(RuntimeError, match=message):
        import_torchvision()
    assert calls == ["torchvision"]
    assert "torchvision._meta_registrations" not in modules

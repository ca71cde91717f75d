"""Imports torchvision, also where its CUDA build (PyPI's Linux wheel) meets a CPU-only torch.

There the compiled library does not load, and torchvision's registration of fake kernels for its operators fails with
"operator torchvision::nms does not exist". Its data sets, transforms and models are pure Python and need none of them.
"""

import importlib
import sys
from types import ModuleType

import torch

_REGISTRATIONS = "torchvision._meta_registrations"


def import_torchvision() -> ModuleType:
    """Return torchvision, imported at the first call; every use of torchvision in this project goes through here.

    Raises:
        ImportError, RuntimeError: torchvision is not installed, or is broken in another way than described above.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        cpu_only = torch.version.cuda is None and torch.version.hip is None
        if not cpu_only or "operator torchvision::" not in str(error):
            raise
    # The failed attempt leaves half of torchvision's submodules behind, bound to a package that no longer exists.
    for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[name]
    sys.modules[_REGISTRATIONS] = ModuleType(_REGISTRATIONS)
    return importlib.import_module("torchvision")

"""CIFAR-10 and CIFAR-100, read by torchvision from the files in which they are published."""

from pathlib import Path

import numpy as np

from common.data.sources.base import ArrayImages, Opened, as_stored, missing, torchvision_download
from common.data.torchvision_shim import import_torchvision
from common.errors import UserError


def open_cifar(class_name: str, data_dir: Path | None, project_dir: Path) -> Opened:
    """The training images of torchvision's class CIFAR10 or CIFAR100, whose check sums are compared."""
    datasets = import_torchvision().datasets
    torchvision_class = getattr(datasets, class_name)
    download = torchvision_download(class_name, data_dir)
    if data_dir is None or not (data_dir / torchvision_class.base_folder).is_dir():
        places = [] if data_dir is None else [data_dir]
        raise missing(class_name.lower(), f"the folder {torchvision_class.base_folder}", places, download)
    folder = data_dir / torchvision_class.base_folder
    try:
        data = torchvision_class(data_dir, train=True, download=False)
    except RuntimeError as error:
        # torchvision's error does not say which of its files failed the check.
        meta = (torchvision_class.meta["filename"], torchvision_class.meta["md5"])
        for file_name, md5 in (*torchvision_class.train_list, *torchvision_class.test_list, meta):
            if not datasets.utils.check_integrity(folder / file_name, md5):
                state = "is damaged" if (folder / file_name).exists() else "is missing"
                raise UserError(f"{folder / file_name} {state}: remove {folder}, then {download}.") from error
        raise
    return Opened(np.asarray(data.targets), tuple(data.classes), (3, 32, 32), ArrayImages(data.data, as_stored), folder)

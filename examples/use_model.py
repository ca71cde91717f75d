"""The personal model of a finished run in plain PyTorch, in two ways: nothing of this project is imported.

    mh-pfedhn run -c run-name=mine                                  # client 0 of the quickstart has a LeNet
    mh-pfedhn export results/mine 0 --output model.pt2
    python examples/use_model.py results/mine/clients/0 model.pt2   # pip install torch numpy, and no more

The state_dict is what to keep for years. PyTorch promises to read a program in the version alone that wrote it.
"""

import json
import sys
from pathlib import Path

import torch
from torch import nn

folder, exported = Path(sys.argv[1]), sys.argv[2]
about = json.loads((folder / "personal-model.json").read_text())
channels, height, width = about["image-shape"]
images = torch.randint(0, 256, (8, channels, height, width), dtype=torch.uint8)  # raw; yours go here

# 1. The state_dict. What builds the model stands in the JSON: a public architecture, or a function of your own.
if about["model"] != "lenet":
    sys.exit(f"This example builds a LeNet, but the client has {about['model']}: choose another client.")
model = nn.Sequential(
    *(nn.Conv2d(channels, 16, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()),
    *(nn.Conv2d(16, 32, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()),
    nn.Flatten(),
    *(nn.Linear(32 * (height // 4) * (width // 4), 108), nn.ReLU()),
    *(nn.Linear(108, 64), nn.ReLU()),
    nn.Linear(64, about["num-classes"]),
)
model.load_state_dict(torch.load(folder / "personal-model.pt", weights_only=True))
model.eval()
mean, std = (torch.tensor(about[name]).view(-1, 1, 1) for name in ("mean", "std"))  # of pixels from 0 to 1
with torch.no_grad():
    logits = model((images / 255 - mean) / std)

# 2. The program. It holds the model and the normalisation, and takes raw images.
with torch.no_grad():
    program_logits = torch.export.load(exported).module()(images)

torch.testing.assert_close(program_logits, logits, rtol=1e-3, atol=1e-4)
print(f"{about['model']} of client {about['client']}, after round {about['round']} of {about['run-name']}")
print("both ways give the same logits; those of the first image:")
for name, value in zip(about["class-names"], logits[0].tolist(), strict=True):
    print(f"{value:8.2f}  {name}")

"""What the sites of `soak.py` bring: a model and data, and what a hostile one changes in its own trainer."""

MODULE = """
import torch
from torch import nn

def build(width):
    return nn.Sequential(nn.Linear(12, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 3))

def load(ward):
    generator = torch.Generator().manual_seed(ward)
    inputs = torch.randn(160, 12, generator=generator)
    targets = (inputs[:, :3] * (1 + ward)).argmax(dim=1)
    return (inputs[:120], targets[:120]), (inputs[120:], targets[120:])
"""
# A site's factories run in its trainer, so a hostile one can change there whatever it likes to.
HOSTILE_MODULE = (
    MODULE
    + """
import time
from pathlib import Path
from common import protocol

register, answer = protocol.encode_registration, protocol.encode_result
WHO = Path(__file__).parent.name

def encode_registration(registration):
    content = register(registration)
    if WHO == "silent":
        time.sleep(10**6)
    if WHO == "giant":
        content["registration"]["num-params"] = 100_000_000
    if WHO == "liar" and Path(__file__).with_name("brazen").exists():
        content["registration"]["train-samples"] = 10**12
    return content

def encode_result(*arguments):
    content = answer(*arguments)
    if WHO == "liar" and "metrics" in content:
        for key, lie in (("num-examples", 10**12), ("test-correct", 10**15), ("test-total", 10**15)):
            if key in content["metrics"]:
                content["metrics"][key] = lie
    return content

protocol.encode_registration, protocol.encode_result = encode_registration, encode_result
"""
)

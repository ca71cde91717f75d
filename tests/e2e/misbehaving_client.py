"""A ClientApp for tests: partitions 0 and 1 do their work, 2 raises, 3 cuts its vector, 4 sends NaN, 5 is late.

They misbehave in round 1 only.
"""

import time

import torch
from flwr.app import Array, ArrayRecord, Context, Message
from flwr.clientapp import ClientApp

from client_app.app import app as honest

app = ClientApp()


@app.query("register")
def register(message: Message, context: Context) -> Message:
    return honest(message, context)


@app.train("exchange")
def train(message: Message, context: Context) -> Message:
    partition = context.node_config["partition-id"]
    if message.content["instructions"]["server-round"] != 1:
        return honest(message, context)
    if partition == 2:
        raise RuntimeError("this client is broken")
    if partition == 5:
        time.sleep(20)
    reply = honest(message, context)
    delta = torch.from_numpy(reply.content["arrays"]["delta"].numpy().copy())
    if partition == 3:
        reply.content["arrays"] = ArrayRecord({"delta": Array(delta[:-1].numpy())})
    if partition == 4:
        delta[7] = float("nan")
        reply.content["arrays"] = ArrayRecord({"delta": Array(delta.numpy())})
    return reply


@app.evaluate("deploy")
def deploy(message: Message, context: Context) -> Message:
    return honest(message, context)

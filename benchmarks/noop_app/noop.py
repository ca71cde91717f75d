"""A ServerApp that sends a vector to every node and waits for one back, and a ClientApp that sends it back."""

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

server = ServerApp()
client = ClientApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    return Message(message.content, reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    seconds = []
    nodes = sorted(grid.get_node_ids())
    values = np.zeros(int(context.run_config["num-values"]), np.float32)
    for server_round in range(int(context.run_config["num-rounds"])):
        began = time.monotonic()
        content = RecordDict({"arrays": ArrayRecord({"values": Array(values)})})
        waiting = {
            identifier
            for node in nodes
            for identifier in grid.push_messages([Message(content, node, "train", group_id=str(server_round))])
        }
        while waiting:
            waiting -= {reply.metadata.reply_to_message_id for reply in grid.pull_messages(list(waiting))}
            time.sleep(0.1)
        seconds.append(time.monotonic() - began)
    Path(str(context.run_config["results"])).write_text(json.dumps(seconds))

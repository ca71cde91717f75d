"""The ClientApp: hands each message to a trainer and sends its answer back.

In deployment Flower starts a process for every message. It finds the trainer behind a socket, where model and data
stay, and must itself import nothing that takes long: the imports below are for that.
"""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client_app.resident import relay

app = ClientApp()


@app.query("register")
def register(message: Message, context: Context) -> Message:
    """Answer a `query.register`."""
    return _answer(message, context, "query.register")


@app.train("personal")
def train_personal(message: Message, context: Context) -> Message:
    """Answer a `train.personal`."""
    return _answer(message, context, "train.personal")


@app.train("global")
def train_global(message: Message, context: Context) -> Message:
    """Answer a `train.global`."""
    return _answer(message, context, "train.global")


@app.train("finish")
def finish(message: Message, context: Context) -> Message:
    """Answer a `train.finish`."""
    return _answer(message, context, "train.finish")


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Answer an `evaluate`."""
    return _answer(message, context, "evaluate")


def _answer(message: Message, context: Context, message_type: str) -> Message:
    address = relay.address_in(context.node_config)
    if address:
        content = relay.ask(address, message_type, message.content)
    else:
        from client_app.trainer import trainer_for

        content = trainer_for(context).answer(message_type, message.content)
    return Message(content, reply_to=message)

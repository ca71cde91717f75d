"""The ClientApp: hands each message to a trainer and sends its answer back. Which exchange it is, the message says.

In deployment Flower starts a process for every message. It finds the trainer behind a socket, where model and data
stay, and must itself import nothing that takes long: the imports below are for that. They are all of this project, so
that what Flower tells the server of an app which it cannot load holds nothing of the site's.
"""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client_app.resident import relay

app = ClientApp()


@app.query("register")
def register(message: Message, context: Context) -> Message:
    """Answer the server's question who is there."""
    return _answer(message, context, "query.register")


@app.train("exchange")
def train(message: Message, context: Context) -> Message:
    """Answer an exchange of a round."""
    return _answer(message, context, "train.exchange")


@app.evaluate("deploy")
def deploy(message: Message, context: Context) -> Message:
    """Answer an exchange that deploys weights, to test or to keep them."""
    return _answer(message, context, "evaluate.deploy")


def _answer(message: Message, context: Context, message_type: str) -> Message:
    if relay.is_named_in(context.node_config):
        content = relay.answer(context.node_config, message_type, message.content)
    else:
        from client_app.reasons import answered
        from client_app.trainer import trainer_for
        from common.protocol import run_name_of

        run_name = run_name_of(message.content)
        content = answered(lambda: trainer_for(context, run_name).answer(message_type, message.content))
    return Message(content, reply_to=message)

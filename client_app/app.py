"""The ClientApp: hands each message to the trainer and sends its answer back."""

from collections.abc import Callable

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client_app.trainer import Trainer, trainer_for

app = ClientApp()


@app.query("register")
def register(message: Message, context: Context) -> Message:
    """Answer a `query.register`."""
    return _answer(message, context, Trainer.register)


@app.train("personal")
def train_personal(message: Message, context: Context) -> Message:
    """Answer a `train.personal`."""
    return _answer(message, context, Trainer.train)


@app.train("global")
def train_global(message: Message, context: Context) -> Message:
    """Answer a `train.global`."""
    return _answer(message, context, Trainer.train_global)


@app.train("finish")
def finish(message: Message, context: Context) -> Message:
    """Answer a `train.finish`."""
    return _answer(message, context, Trainer.finish)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Answer an `evaluate`."""
    return _answer(message, context, Trainer.evaluate)


def _answer(message: Message, context: Context, handle: Callable[[Trainer, RecordDict], RecordDict]) -> Message:
    return Message(handle(trainer_for(context), message.content), reply_to=message)

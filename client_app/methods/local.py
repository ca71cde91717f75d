"""Local training's client: the model is its own and stays on its own disk."""

from client_app.methods.base import ClientMethod, Outcome, Task, exchange
from client_app.training import all_finite
from common.settings import LocalTraining

_MODEL = "model"


class Local(ClientMethod):
    """Nothing but counts and losses leaves the client."""

    Settings = LocalTraining
    settings: LocalTraining

    def load(self, task: Task) -> None:
        """Go on where the last round ended; start at the seeded initialisation."""
        task.site.personal.load_all(task.store.load(_MODEL))

    @exchange
    def personal(self, task: Task) -> Outcome:
        """Train and keep the model, unless it diverged."""
        model = task.site.personal.model
        loss = task.train(model, self.settings)
        state = dict(model.state_dict())
        if all_finite(state.values()):
            task.store.save(_MODEL, state)
        return Outcome(loss=loss)

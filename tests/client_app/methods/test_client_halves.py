"""What a client half may not do, and what its author is told."""

import pytest

from client_app.methods.base import ClientMethod, Outcome, exchange
from common.errors import UserError


class Deploying(ClientMethod):
    def load(self, task):
        pass

    @exchange
    def deploy(self, task):
        return Outcome()


def test_no_function_answers_the_exchange_that_only_deploys():
    with pytest.raises(UserError, match=r"Deploying.deploy is marked as an exchange, but 'deploy' has none: rename it"):
        Deploying.exchanges()

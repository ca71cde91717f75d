"""Exceptions that both apps raise."""


class UserError(Exception):
    """A mistake of the user's: one sentence that says what is wrong, where, and what would be right."""


class ProtocolError(Exception):
    """A message that is not what it should be; `reason` is a short name that is counted, `detail` one sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail

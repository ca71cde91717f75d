"""The exception for everything that a user can mend."""


class UserError(Exception):
    """A mistake of the user's: one sentence that says what is wrong, where, and what would be right."""

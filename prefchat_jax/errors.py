"""The one error that a user can mend: one clear line, exit code 2."""


class UserError(ValueError):
    """What is wrong, where, and what to do, in one line."""

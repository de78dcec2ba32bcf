"""The two ways in which a run ends because of what it was given, not because of a fault of ours."""


class UserError(Exception):
    """The input is wrong. The message names the file, field or flag and says what to write (exit code 2)."""


class ValidationStoppedError(Exception):
    """The data was readable, but a critical expectation failed (exit code 3)."""

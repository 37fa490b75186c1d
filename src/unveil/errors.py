"""The one exception that unveil raises for what its user can mend."""


class UnveilError(Exception):
    """One line for the user: the file or key, what was found, what was expected, how to mend it.

    A stage prints the line and exits with status 1, without a traceback. Anything else that is
    raised is a defect of the program and keeps its traceback.
    """

"""The one exception that unveil raises for what its user can mend, and what the system's refusals say to a user."""

import errno
import re

MENDS = {
    errno.EACCES: "give yourself the right to use it",
    errno.EEXIST: "move it away, or name another",
    errno.EISDIR: "name a file",
    errno.ELOOP: "remove the links that lead to each other",
    errno.EMFILE: "raise the number of files that a process may open: `ulimit -n 4096`",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "name one that is there",
    errno.ENOSPC: "make room on that disk",
    errno.ENOTDIR: "move the file that stands where a folder belongs",
    errno.EPERM: "give yourself the right to use it",
    errno.EROFS: "choose a disk that can be written to",
}


class UnveilError(Exception):
    """One line for the user: the file or key, what was found, what was expected, how to mend it.

    A stage prints the line and exits with status 1, without a traceback. Anything else that is
    raised is a defect of the program and keeps its traceback; only the system's own refusals do not.
    """


def line_for_user(error: BaseException) -> str | None:
    """What a stage or command prints for an error; None for a defect, which keeps its traceback.

    An OSError that no rule foresaw gets its path, the system's reason and how to mend it. One without a path is the
    user's only where it says that something has run out. No line holds a password.
    """
    if isinstance(error, UnveilError):
        return one_line(error)
    if not isinstance(error, OSError) or error.errno is None:
        return None
    if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.EIO):
        return None
    place = "" if error.filename is None else f"{error.filename}: "
    mend = MENDS.get(error.errno, "mend it, or choose another place")
    return printable(f"{place}the system says: {error.strerror}; {mend}")


def printable(text: str) -> str:
    """The text with line breaks and control characters escaped, which a file's name may hold."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def one_line(error: BaseException) -> str:
    """An exception as one line of printable text, as every store takes it; its type's name if it says nothing."""
    return printable(without_secrets(" ".join(str(error).split()))) or type(error).__name__


def without_secrets(text: str) -> str:
    """The text with user and password cut out of its URIs, and what a query calls a secret masked.

    A password may have any character but a space, so all is cut up to the last @ of the word.

    >>> without_secrets("no answer from https://ada:p@s/s@host:5000/runs?token=abc")
    'no answer from https://host:5000/runs?token=***'
    """
    text = re.sub(r"(?<=://)(?!/)\S+@", "", text)
    return re.sub(r"(?i)\b(user|password|passwd|pwd|token|secret)=[^&\s]+", r"\1=***", text)

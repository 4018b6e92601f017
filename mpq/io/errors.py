"""The one exception that means: what the user gave is wrong."""

from __future__ import annotations


class BadInput(ValueError):
    """Wrong input, told in one line.

    The message names the file, the line or utterance, the value found, what was expected and, where that is
    not obvious, what to do next.  The command line prints it as it is and exits with status 2.
    """

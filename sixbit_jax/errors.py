"""What a user did wrong, said in one line.

Library code raises `UserError`; the scripts print its message and leave with exit code 2. Anything else is a bug and
keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake the user can correct. The message names the flag or file and the nearest valid value."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """A hint for an unknown word: the closest choice first, then all of them.

    >>> nearest("unipcc", ["euler", "unipc"])
    'did you mean "unipc"? (choices: euler, unipc)'
    >>> nearest("zzz", ["euler", "unipc"])
    'choices: euler, unipc'
    """
    choices = list(choices)
    listed = "choices: " + ", ".join(choices)
    close = difflib.get_close_matches(word, choices, n=1)
    return f'did you mean "{close[0]}"? ({listed})' if close else listed

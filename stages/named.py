"""What a user names by "module:name", imported; or the reason why not.

>>> imported("math:tau", "a number", "a number in it, as in math:pi")
6.283185307179586
"""

import importlib


def imported(path: str, name: str, expected: str) -> object:
    """The object. ``name`` is what whoever asks calls it, ``expected`` what should be there, with an example.

    Raises ValueError, which begins with ``name`` and the path, whatever the module does when it is imported.
    """
    module, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"{name} {path!r} cannot be imported ({said(error)}): name an importable module, from the working "
            f"directory or installed, and {expected}"
        ) from error


def said(error: BaseException) -> str:
    """An error's kind and text, as a user knows it from a traceback."""
    return f"{type(error).__name__}: {error}"

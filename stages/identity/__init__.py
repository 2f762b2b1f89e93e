"""What names a live object: the code that it runs and the data that it holds, never where it lies in memory.

Two models or attacks that differ in anything that decides what they compute must not share a name, or one would be
given the other's verdicts. So a function is named by its compiled code, its defaults, what it closes over and the
globals that it looks up; an object by its class and all its attributes, whatever a state dict leaves out; and so on
through everything that these refer to. Code of installed packages is named by package and version, that of Python,
PyTorch and NumPy by its name alone. Devices do not count, so a name is the same on every host with the same code.

>>> def scaled_by(factor):
...     return lambda images: factor * images
>>> object_fingerprint(scaled_by(2)) == object_fingerprint(scaled_by(2))
True
>>> object_fingerprint(scaled_by(2)) == object_fingerprint(scaled_by(3))
False
"""

from stages.identity.functions import UnnameableError
from stages.identity.walk import object_fingerprint

__all__ = ["UnnameableError", "object_fingerprint"]

"""Learn and use techniques that change a classifier's labels, each one fastai callback."""
from . import _moved

__version__ = "0.1.0"

_moved.install()

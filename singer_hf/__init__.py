from .adapter import *
from .backbones import *

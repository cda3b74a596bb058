"""What every other package stands on: errors, values, the database."""

from . import errors as _errors
from . import refusals as _refusals
from .database import Database
from .errors import *
from .models import Base
from .refusals import *
from .values import MAX_POINTS, Page, every

__all__ = ["MAX_POINTS", "Base", "Database", "Page", "every"]
__all__ += _errors.__all__
__all__ += _refusals.__all__

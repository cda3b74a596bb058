"""How many examples a property is tried on: all of them where the suite is thorough (``make check``), else a third.

The examples are the same ones in the same order, so that what fails here fails there too.
"""

import os

THOROUGH = "POINTS_PLATFORM_THOROUGH_TESTS"


def examples(number: int) -> int:
    """So many, or a third of them."""
    return number if os.environ.get(THOROUGH) else max(4, number // 3)

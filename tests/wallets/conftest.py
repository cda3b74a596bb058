"""The checks of the matrix stand beside it, and their assertions tell what they have found as those of tests do."""

import pytest

pytest.register_assert_rewrite(f"{__name__.rpartition('.')[0]}.checks".lstrip("."))

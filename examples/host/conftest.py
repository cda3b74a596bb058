"""The fixtures for the points. At the root of a repository it is ``pytest_plugins = ["points_platform.testing"]``."""

from points_platform.testing import *  # noqa: F403

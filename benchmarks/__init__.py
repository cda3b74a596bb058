"""What `make bench` measures. See ``python -m benchmarks --help``."""

import warnings

# The package with the PostgreSQL server remarks on it wherever it is imported.
warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR is not set")

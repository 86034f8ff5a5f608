"""`make demo`: the whole product on one machine, with real pictures, in three acts."""

import warnings

# Containers have no login session; a library of the Postgres wheel says so on every import.
warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR is not set")

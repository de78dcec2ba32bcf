"""The validate step."""

import os

# Great Expectations reads this when it is imported, and only this step imports it.
os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")

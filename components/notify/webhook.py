"""Posts a message to a webhook."""

from __future__ import annotations

import json
import logging
import os
import time
import urllib.error
import urllib.request
from typing import Any

log = logging.getLogger("tandem.notify")
#: Environment variable with the address; it often holds a token, so that it is a secret and stands in no log.
ADDRESS = "TANDEM_WEBHOOK"
SECONDS = 10.0
#: Seconds before each further try.
PAUSES = (1.0, 4.0)


def post(text: str, **facts: Any) -> bool:
    """Post JSON to the webhook: `text`, which chat systems show, and the facts beside it. Without an address nothing.

    A webhook that does not answer is no reason to lose a run: it is logged.

    Returns:
        Whether the webhook took it.
    """
    address = os.environ.get(ADDRESS)
    if not address:
        return False
    body = json.dumps({"text": text, **facts}, ensure_ascii=False).encode()
    for pause in (*PAUSES, None):
        try:
            request = urllib.request.Request(address, body, {"content-type": "application/json"})  # noqa: S310
            with urllib.request.urlopen(request, timeout=SECONDS):  # noqa: S310 - the user's own address
                return True
        except (OSError, ValueError) as error:
            refused = isinstance(error, ValueError)
            if isinstance(error, urllib.error.HTTPError):
                refused = error.code < 500 and error.code != 429
            if refused or pause is None:
                reason = getattr(error, "reason", None) or type(error).__name__
                log.warning("the webhook in %s did not take the message: %s", ADDRESS, reason)
                return False
            time.sleep(pause)
    return False

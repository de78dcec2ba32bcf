"""The service: `python -m serving --host 127.0.0.1 --port 3000 --workers 1`.

`bentoml serve` reads the service in a process of its own before the one that answers does, and takes twice as long to
be ready; it is for Bentos.
"""

from __future__ import annotations

import argparse
import os
from typing import Any


def application() -> Any:
    """The service of one worker, an ASGI application."""
    from serving.service import Tandem

    return Tandem.to_asgi(is_main=True)  # type: ignore[attr-defined]  # the decorator made it a bentoml.Service


def main() -> None:
    """Serve until told to stop: in this process, or in several that share the port and are started anew if they die."""
    parser = argparse.ArgumentParser(prog="python -m serving", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=3000)
    parser.add_argument("--workers", type=int, default=1)
    flags = parser.parse_args()
    import uvicorn
    from bentoml.serving import ensure_prometheus_dir
    from uvicorn.supervisors import Multiprocess

    from serving.port import reserved

    # Read by prometheus_client when it is first imported, which the service does; workers add up their figures there.
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = ensure_prometheus_dir()
    # By its name: workers read the service themselves, and their parent does not.
    app, options = "serving.__main__:application", dict[str, Any](factory=True, host=flags.host, port=flags.port)
    options |= {"log_config": None, "access_log": False, "server_header": False}
    if flags.workers == 1:
        uvicorn.run(app, **options)
    else:
        config = uvicorn.Config(app, workers=flags.workers, **options)
        Multiprocess(config, [reserved(flags.host, flags.port)]).run()


if __name__ == "__main__":
    main()

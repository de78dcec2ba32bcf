"""The service in one process: `python -m serving --host 127.0.0.1 --port 3000`.

`bentoml serve` reads the service in a process of its own before the one that answers does, and takes twice as long to
be ready; it is for Bentos, and for several workers behind one port.
"""

from __future__ import annotations

import argparse
import os


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(prog="python -m serving", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=3000)
    flags = parser.parse_args()
    import uvicorn
    from bentoml.serving import ensure_prometheus_dir

    # Read by prometheus_client when it is first imported, which the service does.
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = ensure_prometheus_dir()
    from serving.service import Tandem

    application = Tandem.to_asgi(is_main=True)  # type: ignore[attr-defined]  # the decorator made it a bentoml.Service
    uvicorn.run(application, host=flags.host, port=flags.port, log_config=None, access_log=False, server_header=False)


if __name__ == "__main__":
    main()

"""What a candidate costs with a history and with text rows: autoint_history beside AutoInt, each as it is served.

    python -m tests.benchmarks.history_cost [--rounds 40] [--json FILE]

MovieLens-1M's fields, 20 likes and 20 dislikes with rating and label, 64 components of each item's text. FLOPs and
forms as in `folded_sequence`; milliseconds of ONNX Runtime on one thread, medians: take them on quiet cores.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.benchmarks import folded_sequence

EVENTS = (("movie_id", None), ("rating", 7), ("label", 5), ("gap", 34), ("hour", 27))
LENGTH = 40
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "autoint": ("autoint", {}),
    "history": ("autoint_history", {}),
    "text_rows": ("autoint_history", {"text_rows": 64}),
    "text_rows, one layer": ("autoint_history", {"text_rows": 64, "layers": 1}),
}
TARGET = 2.0


def main() -> None:
    """Measure, print a table and each model's time against AutoInt's, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    layout, found = folded_sequence.movielens(LENGTH, EVENTS), {}
    for title, (name, config) in MODELS.items():
        with TemporaryDirectory() as folder:
            found[title] = folded_sequence.measure(name, layout, Path(folder), options.rounds, **config)
    print(folded_sequence.table(found))
    for title in list(MODELS)[1:]:
        for count in folded_sequence.CANDIDATES:
            ratios = {
                form: found[title]["ranker"][count]["ms"] / found["autoint"][form][count]["ms"]
                for form in ("ranker", "whole")
            }
            mark = "met" if ratios["ranker"] <= TARGET else "missed"
            said = ", ".join(f"x{value:.2f} of AutoInt's {form}" for form, value in ratios.items())
            print(f"{title}, {count} candidates, ranker: {said} (target {TARGET:g}: {mark})")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()

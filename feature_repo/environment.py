"""Which stores Feast uses: `feature_store.yaml` of an environment, with its variables filled in."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from components.dataset.errors import UserError
from components.dataset.lean import lean
from components.dataset.spec import DatasetSpec
from components.run import aside, home

FOLDER = Path(__file__).parent / "environments"
#: Type of the offline store that joins on Spark.
SPARK = "feature_repo.spark.SparkAsofOfflineStore"
VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def feast_home() -> Path:
    """Folder of the laptop's registry and online store."""
    return home() / "feast"


def render(spec: DatasetSpec) -> dict[str, Any]:
    """The content of feature_store.yaml for a data set's project.

    The environment variable TANDEM_FEAST names the environment (laptop, team or scale; laptop if not set) or a YAML
    file of one's own. `${NAME}` and `${NAME:-default}` stand for environment variables, `${PROJECT}` for the project
    and `${HOME_FEAST}` for `feast_home()`.

    Raises:
        UserError: there is no such environment, one of its variables is not set, or it joins on Spark and there is
            no PySpark or no Java.
    """
    path = _template()
    values = {**os.environ, **_own(spec)}

    def value(name: str, default: str | None) -> str:
        found = values.get(name) or default
        if found is None:
            raise UserError(f"{path} needs the environment variable {name}; set it, or choose TANDEM_FEAST=laptop")
        return found

    content: dict[str, Any] = _filled(_parsed(path), value)
    offline = content.get("offline_store")
    if isinstance(offline, dict) and offline.get("type") == SPARK:
        _see_spark(path)
    return content


def offline_store(spec: DatasetSpec) -> Any:
    """The settings of the environment's offline store.

    Raises:
        UserError: as `render` does.
    """
    with lean():  # a second even so, and those who only write a configuration need none of it
        from feast import RepoConfig

    return RepoConfig(**render(spec)).offline_store


def write_config(spec: DatasetSpec, path: Path) -> None:
    """Write feature_store.yaml for those who only read online, such as the service.

    The offline store is named and not configured: Feast then imports it only when it is used, and so a reader needs
    neither DuckDB nor this package. Variables without a default stay variables, which Feast fills in when it reads
    the file: no password is written down.
    """
    values = _own(spec)

    def value(name: str, default: str | None) -> str:
        return values.get(name) or (f"${{{name}}}" if default is None else os.environ.get(name) or default)

    content = _filled(_parsed(_template()), value)
    offline = content.get("offline_store")
    named = {**content, "offline_store": offline["type"] if isinstance(offline, dict) else offline}
    with aside(path) as draft:
        draft.write_text(yaml.safe_dump(named, sort_keys=False), encoding="utf-8")


def _see_spark(path: Path) -> None:
    if find_spec("pyspark") is None:
        raise UserError(f"{path} joins on Spark, and PySpark is not installed: pip install 'tandem-ctr[scale]'")
    if not os.environ.get("JAVA_HOME") and shutil.which("java") is None:
        raise UserError(f"{path} joins on Spark, and there is no Java: install Java 17 or set JAVA_HOME")


def _own(spec: DatasetSpec) -> dict[str, str]:
    return {"PROJECT": spec.identifier, "HOME_FEAST": str(feast_home())}


def _parsed(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _template() -> Path:
    environment = os.environ.get("TANDEM_FEAST") or "laptop"
    path = FOLDER / f"{environment}.yaml"
    if path.is_file():
        return path
    if Path(environment).is_file():
        return Path(environment)
    known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.yaml")))
    raise UserError(f"TANDEM_FEAST={environment}: no such environment; write {known}, or the path of a YAML file")


def _filled(content: Any, value: Callable[[str, str | None], str]) -> Any:
    """The content with every variable replaced by `value(name, default)`."""
    # Filled in after parsing, so that no value can change the document's structure.
    if isinstance(content, dict):
        return {key: _filled(part, value) for key, part in content.items()}
    if isinstance(content, list):
        return [_filled(part, value) for part in content]
    return VARIABLE.sub(lambda match: value(match[1], match[2]), content) if isinstance(content, str) else content

"""Arrows go one way: pipelines → steps → training → objectives, models → dataset. No step imports another."""

import ast
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from components.deploy.step import SOURCES

ROOT = Path(__file__).resolve().parent.parent
STEPS = {"validate", "retrieve", "prompt_transform", "encode", "align", "finetune", "evaluate", "register", "deploy"}
STEPS |= {"materialize", "notify", "pretrain", "reconstruct"}
BASE = {"components.dataset", "components.run"}
LIBRARY = BASE | {"components.models", "components.objectives", "components.training"}

#: Which of our rooms each room may import; its own modules go without saying.
ALLOWED = {
    "components.dataset": BASE,
    "components.models": BASE,
    "components.objectives": BASE,
    "components.training": LIBRARY,
    "components.registry": BASE,
    "components.run": BASE,
    "components.image": set(),
    "feature_repo": BASE,
    "serving": BASE,
    "components.monitor": LIBRARY | {"components.registry", "feature_repo", "serving"},
    "pipelines": {"components", "feature_repo", "pipelines", "serving"},
} | {f"components.{step}": LIBRARY | {"components.registry", "components.image", "feature_repo"} for step in STEPS}

#: Packages that a room must never import: the serving image holds neither, the core runs on a bare GPU node.
BANNED = {
    "serving": {"torch", "transformers", "kfp", "mlflow"},
    "components.dataset": {"torch", "transformers", "kfp", "mlflow", "feast", "pandas", "great_expectations"},
    "components.models": {"kfp", "mlflow", "feast", "pandas", "great_expectations", "bentoml"},
    "components.objectives": {"kfp", "mlflow", "feast", "pandas", "great_expectations", "bentoml"},
    "components.training": {"kfp", "mlflow", "feast", "pandas", "great_expectations", "bentoml"},
}
OURS = ("components", "feature_repo", "pipelines", "serving")


def room_of(module: str) -> str:
    """The room that a module lies in: components.<room>, or the top-level package."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "components" and len(parts) > 1 else parts[0]


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
            if node.module in OURS:
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files() -> list[Path]:
    return [path for top in OURS for path in sorted((ROOT / top).rglob("*.py"))]


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    if path.name == "__init__.py":
        handed_on = (ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
        names = [node for node in ast.parse(path.read_text()).body if isinstance(node, handed_on)]
        assert not names, f"{path}: nothing is handed on; import from the module itself"
        return
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    room = room_of(module)
    allowed = ALLOWED[room]
    for name in imports_of(path):
        top = name.split(".")[0]
        if top in OURS:
            target = room_of(name)
            fits = target == room or target in allowed or top in allowed or name in OURS
            assert fits, f"{module} imports {name}: {room} may import only {sorted(allowed)}"
        assert top not in BANNED.get(room, set()), f"{module} imports {name}, which {room} must not need"


#: Components by the file that holds them: a room has one of its own name, and some have one for a part of their work.
FACES = {f"{step}/component.py": step for step in STEPS}
FACES |= {"prompt_transform/newcomers_component.py": "newcomers", "register/rows_component.py": "add_rows"}


def test_every_component_is_known():
    found = {f"{path.parent.name}/{path.name}" for path in (ROOT / "components").glob("*/*component.py")}
    assert found == set(FACES)


@pytest.mark.parametrize(("file", "name"), sorted(FACES.items()))
def test_component_files_are_thin(file, name):
    """KFP inlines a component's source: its body stays short and its module imports only kfp and the image."""
    path = ROOT / "components" / file
    tree = ast.parse(path.read_text())
    assert imports_of_top(tree) <= {"kfp", "typing", "components.image"}
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert [function.name for function in functions] == [name]
    body = functions[0].body[1:]  # without the docstring
    assert body[-1].end_lineno - body[0].lineno + 1 <= 20, f"{path}: the body belongs into the library"


def imports_of_top(tree: ast.Module) -> set[str]:
    found = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return found


def needed_by(*modules: str) -> set[str]:
    """The files of ours that these modules need when they are imported, by their paths in the project."""
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        for path in (
            ROOT.joinpath(*module.split(".")).with_suffix(".py"),
            ROOT.joinpath(*module.split("."), "__init__.py"),
        ):
            name = str(path.relative_to(ROOT))
            if path.is_file() and name not in found:
                found.add(name)
                waiting += at_import(path)
        waiting += [module.rpartition(".")[0]] if "." in module else []
    return found


def at_import(path: Path) -> list[str]:
    """Our modules that a file imports at its top, but for type checkers."""
    found = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [module for module in found if module.split(".")[0] in OURS]


def copied(stage: str) -> list[str]:
    """Patterns of the files that a stage of the Dockerfile copies."""
    text = (ROOT / "infra" / "images" / "Dockerfile").read_text().split(f" AS {stage}\n")[1].split("\nFROM ")[0]
    sources = [line.split()[1:-1] for line in text.splitlines() if line.startswith("COPY ")]
    return [name if name.endswith(".py") else f"{name}/*" for names in sources for name in names]


#: What `tandem push --follow` imports, some of it when it is called.
PUSH = [
    *("pipelines.cli", "pipelines.service", "components.dataset.catalog", "components.monitor.pushing"),
    "feature_repo.store",
]


@pytest.mark.parametrize(
    ("modules", "patterns"),
    [
        (["serving.service"], list(SOURCES)),
        (["serving.service"], copied("serve-source")),
        (["pipelines.cli", "pipelines.service", "components.registry.mirror"], copied("follow-source")),
        (PUSH, copied("push-source")),
    ],
)
def test_what_is_packed_holds_all_that_it_imports(modules, patterns):
    absent = {name for name in needed_by(*modules) if not any(fnmatch(name, pattern) for pattern in patterns)}
    assert not absent


def test_who_pushes_needs_only_the_packages_of_its_image():
    """Nothing that the extra `push` leaves out is there; Feast does without torch where there is none."""
    absent = ("bentoml", "duckdb", "kfp", "mlflow", "msgspec", "onnxruntime", "rich", "torch")
    code = f"import sys; sys.modules.update(dict.fromkeys({absent})); import {', '.join(PUSH)}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr

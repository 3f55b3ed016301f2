"""The rules of the house, held by reading the code."""

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import filmlet
from tests.helpers.servers import Running

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "filmlet"
# Lowest first; packages in one row do not know each other. ARCHITECTURE.md shows the same list.
FLOORS = (
    ("errors",),
    ("settings", "core"),
    ("models", "media"),
    ("engine", "enhancers"),
    ("pipeline",),
    ("jobs", "clip"),
    ("api",),
    ("ui",),
    ("server",),
    ("spaces",),
    ("cli",),
    ("__main__",),
)
LIVES_IN = {
    "torch": "engine",
    "diffusers": "engine",
    "transformers": "engine",
    "safetensors": "engine",
    "openvino": "engine",
    "av": "media",
    "PIL": "media",
    "pillow_heif": "media",
    "rich": "cli",
    "dbos": "jobs",
    "sqlalchemy": "jobs",
    "fsspec": "jobs",
    "httpx2": "jobs",
    "fastapi": "api",
    "fastapi_offline": "api",
    "starlette": "api",
    "pydantic": "api",
    "prometheus_client": "api",
    "gradio": "ui",
    "spaces": "spaces",
    "tokenizers": "models",
    "huggingface_hub": "models",
    "filelock": "models",
    "uvicorn": "server",
}
ALSO = {
    ("models", "transformers"),  # reads tokenizers in sentencepiece's files
    ("server", "starlette"),  # wraps the app
    ("enhancers", "httpx2"),  # asks a chat endpoint
    ("models", "httpx2"),  # the Hub's client raises its errors
    ("spaces", "huggingface_hub"),  # makes Spaces
    *(("ui", name) for name in ("fastapi", "pydantic", "starlette")),  # Gradio is built on them
    *(("spaces", name) for name in ("fastapi", "gradio", "httpx2", "starlette")),
}


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def sources() -> list[Path]:
    return [p for p in SOURCE.rglob("*.py") if p != SOURCE / "__init__.py"]


def imports(path: Path) -> set[str]:
    """Dotted names of every module that a file imports, for types only as well."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own_rooms(path: Path) -> set[str]:
    parts = (name.split(".") for name in imports(path) if name.startswith("filmlet."))
    return {p[1] for p in parts} & {r for floor in FLOORS for r in floor}


def floor_of(name: str) -> int:
    return next(i for i, floor in enumerate(FLOORS) if name in floor)


def test_every_file_imports_only_from_floors_below() -> None:
    assert len(sources()) > 15
    for path in sources():
        here = room(path)
        for other in own_rooms(path) - {here}:
            assert floor_of(other) < floor_of(here), (
                f"{path.name} imports {other}, which is not below it"
            )


def test_every_third_party_library_lives_in_one_room() -> None:
    for path in sources():
        for name in {n.split(".")[0] for n in imports(path)}:
            home = LIVES_IN.get(name)
            if home and room(path) != home:
                assert (room(path), name) in ALSO, f"{path} imports {name}, which lives in {home}"


def test_only_settings_reads_the_environment() -> None:
    for path in sources():
        text = path.read_text()
        if room(path) != "settings":
            assert "os.environ" not in text, path
            assert "getenv" not in text, path


def test_no_file_is_called_by_what_it_is_not() -> None:
    forbidden = {"utils", "util", "common", "manager", "handler", "helper", "helpers", "misc"}
    assert not {p.stem for p in ROOT.rglob("*.py") if ".venv" not in p.parts} & forbidden


def test_bundled_checkpoint_names_no_path_of_the_machine_that_made_it() -> None:
    for file in (SOURCE / "pocket").rglob("*.json"):
        assert not re.search(r'"_name_or_path"|"/[a-z]+/', file.read_text()), file


def test_nothing_loads_pickles() -> None:
    for path in [*SOURCE.rglob("*.py"), *(ROOT / "recipe").glob("*.py")]:
        assert not re.search(r"torch\.load\(|import pickle|\.bin\"", path.read_text()), path


def test_public_names_are_these() -> None:
    assert sorted(filmlet.__all__) == [
        "Audio", "Change", "Clip", "ClipRequest", "EffectiveSettings", "EnhancedPrompt",
        "FilmletError", "Frames", "Guide", "InvalidRequest", "Lora",
        "Preview", "Progress", "SettingsChanged", "Stage", "StageFinished", "__version__",
        "convert_clip", "enhance_prompt", "generate", "stream",
    ]  # fmt: skip
    for name in filmlet.__all__:
        assert getattr(filmlet, name)


def test_importing_filmlet_imports_no_third_party_library() -> None:
    code = (
        "import sys, filmlet; third = {m.split('.')[0] for m in sys.modules};"
        f"print(third & {set(LIVES_IN) | {'numpy'}})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def commands(language: str) -> list[str]:
    """The lines of the README's code blocks in a language."""
    blocks = re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def test_readmes_make_commands_are_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    asked = {line.split()[1] for line in commands("sh") if line.startswith("make ")}
    assert {"run", "test"} <= asked <= targets
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_readmes_filmlet_commands_are_ones_the_command_line_takes() -> None:
    import shlex

    from filmlet.cli.main import build_parser

    asked = [line for line in commands("sh") if line.startswith("filmlet ")]
    assert len(asked) >= 3
    for line in asked:
        options = build_parser().parse_args(shlex.split(line, comments=True)[1:])
        assert callable(options.run)


def test_readmes_python_runs(tmp_path: Path, shared_server: Running) -> None:
    code = "\n".join(commands("python"))
    assert "filmlet.generate" in code
    assert "http://127.0.0.1:7860" in code
    code = code.replace("http://127.0.0.1:7860", shared_server.url)
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert {path.name for path in tmp_path.glob("*.mp4")} == {"square.mp4", "star.mp4"}


def test_architecture_names_every_room() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    for floor in FLOORS:
        for name in floor:
            assert name in text, name


def test_class_names_are_used_once() -> None:
    names = Counter(
        node.name
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in names.items() if count > 1] == []

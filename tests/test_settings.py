"""Every setting with every kind of odd value: one sentence that names the variable."""

from dataclasses import fields
from pathlib import Path

import pytest

from filmlet.cli.main import build_parser
from filmlet.errors import InvalidSetting
from filmlet.settings import CHOICES, FOLDERS, FORMS, RANGES, Settings, SpaceEnvironment
from tests.helpers.forked_processes import run_filmlet

NUMBERS = [
    "nan", "inf", "-inf", "-1", "1e400", "9" * 30, "9" * 5000, "soon", "0x10", "1,5", "--1", "1 2",
]  # fmt: skip
LONG = "x" * 100_000
TEXTS = {  # odd values of the settings that are text
    "device": ["tpu", "cuda:", "cuda:-1", "cuda:x", "CPU", "nan", "-1", "cpu,cuda", LONG],
    "offload": ["nan", "-1", "MODEL", "all", LONG],
    "engine": ["nan", "-1", "onnx", LONG],
    "metrics": ["nan", "1", "OPEN", LONG],
    "enhancer": ["nan", "1", "MODEL", "endpoint", LONG],
    "model": [LONG],
    "database_url": [
        "foo", "nan", "-1", "postgres://h/d", "postgresql://h:port/d", "postgresql://h:99999/d",
        "postgresql://[::1/d", "mysql://h/d", "sqlite://", "sqlite:///", "://", "nosuch://x", LONG,
    ],
    "storage_url": ["s3://", "s3:///", "://x", "a b://x", LONG, f"/{'x' * 300}/clips"],
    "worker": ["a\nb", "x" * 101, LONG],
    "webhook_url": [
        "foo", "nan", "ftp://h/", "http://", "http://h:port/", "http://a b/", "http://[::1", LONG,
    ],
    "enhance_url": [
        "foo", "nan", "ftp://h/v1", "file:///etc/passwd", "http://", "http://h:port/v1",
        "http://a b/v1", "http://[::1", LONG,
    ],
    "enhance_model": ["a\nb", "x" * 201, LONG],
    "enhance_key": ["a b", "k\u00e9y", "a\nb", LONG],
    "webhook_secret": ["whsec_", "whsec_***", "no base64", LONG],
    "forwarded_allow_ips": ["nan", "localhost", "10.0.0.0/99", "10.0.0.1;10.0.0.2", ",", LONG],
    "root_path": [
        "films", "//evil.example", "/a//b", "/..", "/a/../b", "/./a", "/a b", "/a?b", "/a#b",
        "/a%2f", "/a;b", "/a,/b", '/"', "/<b>", "/a\nb", "/\u00e9", "javascript:x", "\\films",
        "http://h/films", "/v1", "/ui/films", "/gradio_api", f"/{LONG}",
    ],
    "home": [LONG, f"/{'x' * 300}/home"],
    "cache": [LONG, f"/{'x' * 300}/cache"],
}  # fmt: skip
GOOD = {
    "device": ["cpu", "cuda", "cuda:1", "mps"],
    "database_url": [
        "postgresql://ann:secret@db:5432/filmlet?sslmode=require", "postgresql:///filmlet",
        "postgresql+psycopg://db/filmlet", "sqlite:////var/lib/filmlet/queue.sqlite",
    ],
    "storage_url": ["s3://bucket", "s3://bucket/a/b", "clips", "/srv/clips", "file:///srv/clips"],
    "worker": ["gpu-0", "Kölner Rechner"],
    "enhance_model": ["llama3.2:3b", "Qwen/Qwen3-4B-Instruct"],
    "enhance_key": ["sk-abc_DEF"],
    "forwarded_allow_ips": ["*", "127.0.0.1,::1", "10.0.0.0/8, 172.17.0.1"],
    "root_path": ["/", "/films", "/films/", "/a/b.c_d~e-f", "/..a", "/v1a"],
    "webhook_secret": ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
    "lease_s": ["1", "60.5"],
    "keep_gb": ["0.00025", "1e3"],
    "int8": ["0", "1"],
}  # fmt: skip
KINDS = {field.name: type(getattr(Settings(), field.name)) for field in fields(Settings)}
ODD = [
    (name, value)
    for name, kind in KINDS.items()
    for value in (NUMBERS if kind in (int, float) else TEXTS[name])
] + [(name, "2") for name, (_, highest) in RANGES.items() if highest == 1]


def variable_of(name: str) -> str:
    return f"FILMLET_{name.upper()}"


def is_one_sentence(text: str) -> bool:
    return text.isprintable() and len(text) < 400 and text.endswith(".")


def test_every_setting_is_checked() -> None:
    checked = {*RANGES, *CHOICES, *FORMS, *FOLDERS}
    assert checked == {*KINDS} - {"model"}  # which is looked up where it is used
    assert {name for name, kind in KINDS.items() if kind in (int, float)} == {*RANGES}


@pytest.mark.parametrize(("name", "value"), ODD, ids=lambda text: text[:20])
def test_odd_value_is_one_sentence_that_names_the_variable(name: str, value: str) -> None:
    environment = {"FILMLET_WEBHOOK_SECRET": "whsec_AAAA", variable_of(name): value}
    with pytest.raises(InvalidSetting) as refused:
        Settings.from_environment(environment)
    text = str(refused.value)
    assert text.startswith(f"{variable_of(name)} "), text
    assert is_one_sentence(text), text


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("value", ["", " ", "\t"])
def test_empty_value_is_the_default(name: str, value: str) -> None:
    assert Settings.from_environment({variable_of(name): value}) == Settings()


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in GOOD.items() for v in vs])
def test_usual_value_is_taken(name: str, value: str) -> None:
    found = getattr(Settings.from_environment({variable_of(name): value}), name)
    assert found == KINDS[name](value) if KINDS[name] in (int, float) else found == value


def test_no_message_shows_a_password() -> None:
    for name, value in [
        ("database_url", "mysql://ann:hunter2@db/filmlet"),
        ("webhook_url", "ftp://ann:hunter2@hooks/"),
        ("webhook_secret", "hunter2!"),
        ("enhance_url", "ftp://ann:hunter2@llm/v1"),
        ("enhance_key", "hunter2 3"),
    ]:
        with pytest.raises(InvalidSetting, match=variable_of(name)) as refused:
            Settings.from_environment({variable_of(name): value})
        assert "hunter2" not in str(refused.value)


def test_file_is_no_folder(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for name in FOLDERS:
        for place in (str(file), str(file / "below")):
            with pytest.raises(InvalidSetting, match=f"{variable_of(name)} .*folder"):
                Settings.from_environment({variable_of(name): place})


def test_settings_in_python_are_checked_the_same() -> None:
    with pytest.raises(InvalidSetting, match="FILMLET_LEASE_S must be a number, from 1 to 86400"):
        Settings(lease_s=float("nan"))
    with pytest.raises(InvalidSetting, match="FILMLET_DATABASE_URL"):
        Settings(database_url="foo")
    with pytest.raises(InvalidSetting, match="FILMLET_WEBHOOK_SECRET"):
        Settings(webhook_url="https://example.org/hook")
    with pytest.raises(InvalidSetting, match="FILMLET_ENHANCE_MODEL"):
        Settings(enhance_url="http://127.0.0.1:11434/v1")


def test_proxies_name_is_the_one_that_was_set() -> None:
    with pytest.raises(InvalidSetting, match=r"^FORWARDED_ALLOW_IPS must be"):
        Settings.from_environment({"FORWARDED_ALLOW_IPS": "proxy"})


@pytest.mark.parametrize("port", ["nan", "-1", "0", "65536", "9" * 5000, "http"])
def test_odd_port_of_a_space_is_named(port: str) -> None:
    with pytest.raises(InvalidSetting, match=r"^GRADIO_SERVER_PORT must be") as refused:
        SpaceEnvironment.from_environment({"GRADIO_SERVER_PORT": port})
    assert is_one_sentence(str(refused.value))


COMMANDS = {
    "generate": ["a ball"], "submit": ["a ball"], "plan": ["a ball"], "jobs": [], "models": [],
    "worker": [], "enhance": ["a ball"], "serve": ["--port", "0"], "keys": [],
    "space": ["files", "space"],
    "config": [], "completion": ["bash"],
}  # fmt: skip


def test_commands_are_all_commands() -> None:
    (actions,) = (a for a in build_parser()._actions if a.dest == "command")
    assert set(actions.choices or ()) == {*COMMANDS}


@pytest.mark.server
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_tells_an_odd_setting(command: str, tmp_path: Path) -> None:
    for name, value in [("DATABASE_URL", "foo"), ("LEASE_S", "nan"), ("KEEP_GB", "-1")]:
        run = run_filmlet(
            command, *COMMANDS[command], cwd=tmp_path,
            **{f"FILMLET_{name}": value, "FILMLET_HOME": str(tmp_path / "home")},
        )  # fmt: skip
        assert run.returncode == 2, run.stderr
        assert run.stderr.startswith(f"filmlet: FILMLET_{name} must be"), run.stderr
        assert run.stderr.endswith("[invalid_setting]\n")
        assert run.stderr.count("\n") == 1


@pytest.mark.server
@pytest.mark.parametrize(
    ("name", "value"), [("MODEL", "no-such-model"), ("STORAGE_URL", "nosuch://x")]
)
def test_server_tells_what_it_cannot_use(name: str, value: str, tmp_path: Path) -> None:
    variables = {f"FILMLET_{name}": value, "FILMLET_HOME": str(tmp_path / "home")}
    run = run_filmlet("serve", "--port", "0", "--no-worker", cwd=tmp_path, **variables)
    assert run.returncode == 2, run.stderr
    assert f"filmlet: FILMLET_{name} cannot be used" in run.stderr
    assert "Traceback" not in run.stderr

"""What the documentation says is true: its links lead somewhere, its commands run, its options exist."""

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from gradfuse.cli import app, main

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
COMMANDS = {command.callback.__name__: command for command in app.registered_commands}


def blocks(page, language):
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert not missing


def test_the_commands_of_the_readme_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [line for block in blocks(ROOT / "README.md", "console") for line in block.splitlines()]
    commands = [shlex.split(line, comments=True)[2:] for line in lines if line.startswith("$ gradfuse ")]
    assert len(commands) >= 5
    for command in commands:
        expected = 1 if command[0] == "report" else 0
        assert main(command) == expected, command


def test_the_report_of_the_readme_is_what_the_command_prints(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    (shown,) = blocks(ROOT / "README.md", "text")
    main(["report", "gradfuse.models.deep_mlp:pytorch"])
    assert capsys.readouterr().out.startswith(shown)


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(ROOT / "README.md", "python")
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "runs" / "mlp" / "model.onnx").exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_a_page_with_its_options(name):
    page = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    parameters = typer.main.get_command(app).commands[name].params
    options = {option for parameter in parameters for option in parameter.opts if option.startswith("--")} - {
        "--help"
    }
    assert not {option for option in options if option not in page}
    mentioned = set(re.findall(r"`(--[a-z-]+)", page))
    everywhere = {
        option
        for command in typer.main.get_command(app).commands.values()
        for p in command.params
        for option in p.opts
    }
    assert mentioned <= everywhere

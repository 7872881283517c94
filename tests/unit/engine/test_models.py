"""Names of models, checking a folder, and making one that a kill cannot leave half-done."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from worker.errors import ModelError
from worker.models import DEFAULT, PACKAGED, installed
from worker.models import prepare as preparing
from worker.models.__main__ import main
from worker.models.packaged import MODELS
from worker.models.prepare import STAMP, Say, prepare, read_stamp, validate

ROOT = Path(__file__).parents[3]


def put_model(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("config.json", "{}"), ("model.safetensors", "w"), ("tokenizer.json", "{}")):
        (folder / name).write_text(text)
    return folder


class Handmade:
    """A source that writes three small files, or fails after the first."""

    needs = 1

    def __init__(self, version: str = "1", fails: bool = False) -> None:
        self.version, self.fails = version, fails
        self.found: list[str] = []

    def stamp(self) -> dict[str, str]:
        return {"version": self.version}

    def fill(self, folder: Path, say: Say) -> None:
        self.found = [file.name for file in folder.iterdir()]
        (folder / "config.json").write_text("{}")
        if self.fails:
            raise ModelError("broken off")
        put_model(folder)


def use(monkeypatch: pytest.MonkeyPatch, source: Handmade) -> Handmade:
    monkeypatch.setattr(preparing, "_source", lambda name: source)
    return source


def test_where_models_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANOPY_HOME", str(tmp_path))
    assert installed(DEFAULT) == tmp_path / "models" / DEFAULT
    assert installed("acme/small-1b") == tmp_path / "models" / "acme--small-1b"
    assert installed(str(tmp_path)) == tmp_path


def test_a_folder_must_hold_a_model(tmp_path: Path) -> None:
    folder = put_model(tmp_path / "mine")
    assert prepare(str(folder), tmp_path, print) == folder
    for name, complaint in (("tokenizer.json", "tokenizer"), ("model.safetensors", "safetensors")):
        (folder / name).unlink()
        with pytest.raises(ModelError, match=complaint):
            validate(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json"):
        validate(folder)
    with pytest.raises(ModelError, match="no such folder"):
        validate(tmp_path / "absent")


def test_made_once_and_again_for_a_new_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    use(monkeypatch, Handmade())
    folder = prepare("thing", tmp_path, said.append)
    assert read_stamp(folder) == {"version": "1"}
    assert any("free" in line for line in said)
    (folder / "mark").touch()
    assert prepare("thing", tmp_path, said.append) == folder
    assert (folder / "mark").exists()
    use(monkeypatch, Handmade(version="2"))
    prepare("thing", tmp_path, said.append)
    assert not (folder / "mark").exists()
    assert read_stamp(folder) == {"version": "2"}
    assert [file.name for file in folder.parent.iterdir() if file.is_dir()] == ["thing"]


def test_a_broken_off_preparation_shows_no_model_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Handmade(fails=True))
    with pytest.raises(ModelError, match="broken off"):
        prepare("thing", tmp_path, print)
    assert not installed("thing", tmp_path).exists()
    second = use(monkeypatch, Handmade())
    assert validate(prepare("thing", tmp_path, print)) is None
    assert second.found == ["config.json"]  # what was there already can be reused


def test_full_disk_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = use(monkeypatch, Handmade())
    source.needs = 10**18
    with pytest.raises(ModelError, match="free and the model needs"):
        prepare("thing", tmp_path, print)


def test_what_a_broken_download_left_needs_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = use(monkeypatch, Handmade())
    source.needs = 1000
    usage = shutil.disk_usage(tmp_path)._replace(free=600)
    monkeypatch.setattr(preparing.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ModelError, match="free and the model needs"):
        prepare("thing", tmp_path, print)
    partial = tmp_path / "models" / ".thing.partial" / ".cache"
    partial.mkdir(parents=True)
    (partial / "weights.incomplete").write_bytes(bytes(500))
    assert validate(prepare("thing", tmp_path, print)) is None


def test_killed_half_way(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from worker.models import prepare as p;"
        "from tests.unit.engine.test_models import Handmade\n"
        "class Slow(Handmade):\n"
        "    def fill(self, folder, say):\n"
        "        (folder / 'config.json').write_text('{}')\n"
        "        print('half', flush=True); time.sleep(60)\n"
        "p._source = lambda name: Slow()\n"
        "p.prepare('thing', Path(sys.argv[1]), lambda line: None)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    with process, process.stdout as output:
        assert output.readline() == b"half\n"
        os.kill(process.pid, signal.SIGKILL)
    assert not installed("thing", tmp_path).exists()
    with pytest.MonkeyPatch.context() as patch:
        use(patch, Handmade())
        assert (prepare("thing", tmp_path, print) / STAMP).exists()


@pytest.mark.parametrize("name", PACKAGED)
def test_a_packaged_model_is_instant_when_its_stamp_fits(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = put_model(installed(name, tmp_path))
    (folder / STAMP).write_text(json.dumps(MODELS[name].stamp()))
    assert main(["prepare", name, "--home", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{folder}\n"


def test_errors_are_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", str(tmp_path / "absent"), "--home", str(tmp_path)]) == 2
    assert main(["prepare", "not a name!", "--home", str(tmp_path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "neither a folder nor a Hugging Face id" in lines[1]


def test_an_unreachable_hub_is_said_in_one_line(tmp_path: Path) -> None:
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "CANOPY_HOME": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-m", "worker.models", "prepare", "acme/none"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 2
    assert "cannot be reached" in run.stderr
    assert run.stderr.count("\n") == 1

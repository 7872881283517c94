"""Preparation: steps run when needed and fail in one line; an interrupted one is done again."""

import sys
import threading
import time
from pathlib import Path

import pytest

from cli import home
from cli.errors import CliError, explain_os_error
from cli.prepare import doctor, frontend, gpus, launch, stamps, steps, system, venv
from cli.prepare.model import Model
from cli.prepare.steps import Log, Step


def step(name: str, code: str, *, needed: bool = True) -> Step:
    return Step(name, f"Step {name}", lambda: needed, lambda log: _python(log, code))


def _python(log: Log, code: str) -> None:
    log.run([sys.executable, "-c", code])


def test_a_step_keeps_its_output_and_says_what_it_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps.run_together([step("one", "print('hello')")], tmp_path)
    assert "hello" in (tmp_path / "prepare-one.log").read_text()
    said = capsys.readouterr()
    assert said.out == ""  # standard output is for results
    assert "Step one" in said.err


def test_what_is_not_needed_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps.run_together([step("one", "raise SystemExit(1)", needed=False)], tmp_path)
    assert capsys.readouterr().err == ""


def test_a_failure_is_one_line_with_the_reason_and_the_log(tmp_path: Path) -> None:
    with pytest.raises(CliError) as caught:
        steps.run_together(
            [step("one", "print('ERROR: no such package'); print('bye'); raise SystemExit(3)")],
            tmp_path,
        )
    assert (
        str(caught.value)
        == f"Step one failed: ERROR: no such package (log: {tmp_path / 'prepare-one.log'})"
    )


def test_a_full_disk_is_named_as_such(tmp_path: Path) -> None:
    code = (
        "print('OSError: [Errno 28] No space left on device'); print('more'); raise SystemExit(1)"
    )
    with pytest.raises(CliError, match="the disk is full"):
        steps.run_together([step("one", code)], tmp_path)


def test_steps_run_at_the_same_time(tmp_path: Path) -> None:
    meeting = threading.Barrier(2, timeout=20)
    both = [
        Step(name, name, lambda: True, lambda _log: meeting.wait() and None) for name in ("a", "b")
    ]
    steps.run_together(both, tmp_path)


def test_one_prepares_at_a_time_and_the_next_waits(tmp_path: Path) -> None:
    order: list[str] = []
    inside = threading.Event()

    def first() -> None:
        with steps.exclusive(tmp_path / "lock"):
            inside.set()
            time.sleep(0.2)  # the time in which the second must not get in
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    assert inside.wait(10)
    with steps.exclusive(tmp_path / "lock"):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]


def make_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "requirements.txt").write_text("pika==1\n")
    (folder / "venv" / "bin").mkdir(parents=True)
    (folder / "venv" / "bin" / "python").touch()
    (folder / "venv" / "pyvenv.cfg").write_text("version = 3.11.2\n")
    monkeypatch.setattr(stamps, "REPOSITORY", folder)
    monkeypatch.setattr(stamps, "VENV", folder / "venv")
    monkeypatch.setattr(stamps, "VENV_PYTHON", folder / "venv" / "bin" / "python")
    monkeypatch.setattr(stamps, "STAMP", folder / "venv" / ".stamp")
    monkeypatch.setattr(venv, "_works", lambda: True)


def test_requirements_are_installed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_environment(tmp_path, monkeypatch)
    installed: list[str] = []
    monkeypatch.setattr(
        venv, "pip_install", lambda _log, *arguments: installed.append(arguments[-1])
    )
    for _ in range(2):
        steps.run_together([venv.step(["requirements.txt"])], tmp_path)
    assert len(installed) == 1
    (tmp_path / "requirements.txt").write_text("pika==2\n")
    assert stamps.outdated(["requirements.txt"]) == ["requirements.txt"]


def test_an_interrupted_installation_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_environment(tmp_path, monkeypatch)
    monkeypatch.setattr(venv, "pip_install", lambda *_: None)
    steps.run_together([venv.step(["requirements.txt"])], tmp_path)
    (tmp_path / "requirements.txt").write_text("pika==2\n")

    def dies(*_: object) -> None:
        raise CliError("cut short")

    monkeypatch.setattr(venv, "pip_install", dies)
    with pytest.raises(CliError):
        steps.run_together([venv.step(["requirements.txt"])], tmp_path)
    (tmp_path / "requirements.txt").write_text(
        "pika==1\n"
    )  # back to what was installed to the end before
    assert stamps.outdated(["requirements.txt"]) == ["requirements.txt"]


@pytest.mark.parametrize(
    ("version", "enough"),
    [
        ("v18.19.0", False),
        ("v20.18.9", False),
        ("v20.19.0", True),
        ("v22.11.0", False),
        ("v22.12.0", True),
        ("v24.1.0", True),
        ("v21.9.0", False),
        ("", False),
    ],
)
def test_node_versions_that_can_build(version: str, enough: bool) -> None:
    assert frontend.new_enough(version) is enough


def test_the_build_follows_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frontend, "FRONTEND", tmp_path)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "app.ts").write_text("1")
    before = frontend.fingerprint()
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "x.js").write_text("ignored")
    assert frontend.fingerprint() == before
    (tmp_path / "src" / "app.ts").write_text("2")
    assert frontend.fingerprint() != before


def test_without_rights_the_command_to_type_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "_privilege", lambda: None)
    monkeypatch.setitem(system.PROBES, "rabbitmq-server", lambda: False)
    with pytest.raises(CliError) as caught:
        system.step(["rabbitmq-server"])
    assert str(caught.value) == (
        "Needs rabbitmq-server; run: sudo apt-get update && sudo apt-get install -y rabbitmq-server"
    )


def test_help_needs_nothing_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "VENV_PYTHON", Path("/nonexistent/python"))
    assert launch.main(["--help"]) == 0
    output = capsys.readouterr().out
    for command in ("up", "down", "status", "doctor", "node", "tree", "key create", "test"):
        assert f"./canopy {command}" in output


@pytest.mark.parametrize(
    ("argument", "name"),
    [
        ("gemma-3-270m", "gemma-3-270m"),
        ("org/model", "org/model"),
        ("/data/my-model", "my-model"),
        ("./m/", "m"),
    ],
)
def test_public_names_of_models(argument: str, name: str) -> None:
    assert Model(argument).name == name


def test_a_folder_is_named_by_its_last_component(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert Model("here").name == "here"
    assert Model(".").name == tmp_path.name


def test_a_full_disk_outside_of_a_step() -> None:
    assert "disk is full" in str(
        explain_os_error(OSError(28, "No space left on device", "/data/x"))
    )


def test_a_home_that_is_a_file_says_so_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch()
    for folder in (file, file / "below"):
        monkeypatch.setenv("CANOPY_HOME", str(folder))
        with pytest.raises(OSError, match=str(file)) as raised:
            home.read().make()
        said = str(explain_os_error(raised.value))
        assert "A file is where a folder is needed" in said
        assert "Set CANOPY_HOME to a folder" in said


def test_the_two_preparation_locks_are_two_files_even_in_the_default_home() -> None:
    assert (
        home.read({}).models_lock != home.PREPARE_LOCK
    )  # the same one, taken twice, would wait for itself


def machine(root: Path, drivers: int, files: int) -> Path:
    """A root folder as the driver makes it."""
    for number in range(drivers):
        (root / f"proc/driver/nvidia/gpus/0000:0{number}:00.0").mkdir(parents=True)
    (root / "dev").mkdir(parents=True)
    for name in ["nvidiactl", "nvidia-uvm", *(f"nvidia{number}" for number in range(files))]:
        (root / "dev" / name).touch()
    return root


@pytest.mark.parametrize(
    ("drivers", "files", "visible", "count"),
    [
        (0, 0, None, 0),
        (2, 2, None, 2),
        (12, 12, None, 12),
        (2, 0, None, 2),  # their files come with the first use
        (0, 3, None, 3),
        (8, 1, None, 1),  # a container that was given one
        (4, 4, "0,2", 2),
        (4, 4, " 3 ", 1),
        (4, 4, "", 0),
        (4, 4, "-1", 0),
        (4, 4, "0,-1,2", 1),
        (4, 4, "GPU-8932f937,GPU-1f5e2bd0", 2),
        (4, 4, "NoDevFiles", 1),
        (2, 2, "0,1,2,3", 2),
        (0, 0, "0,1", 0),
    ],
)
def test_gpus_are_counted_without_torch(
    tmp_path: Path, drivers: int, files: int, visible: str | None, count: int
) -> None:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert gpus.count(machine(tmp_path / "root", drivers, files), environ) == count


def test_the_doctor_tells_the_gpus_and_does_without(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for count in (2, 0):
        monkeypatch.setattr(gpus, "count", lambda count=count: count)
        doctor.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if " GPU: " in line]
    assert lines == ["ok   GPU: 2", "note GPU: none -> models are computed on the CPU"]


@pytest.mark.parametrize("command", ["up", "user"])
def test_a_directory_needs_packages_that_others_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    make_environment(tmp_path, monkeypatch)
    (tmp_path / "requirements-ldap.txt").write_text("python-ldap==3\n")
    stamps.record("requirements.txt")
    wanted: list[tuple[list[str], list[str]]] = []
    monkeypatch.setattr(
        launch, "_install", lambda packages, files: wanted.append((packages, files))
    )
    monkeypatch.delenv("CANOPY_LDAP_URL", raising=False)
    launch.prepare("user")
    assert wanted == []
    monkeypatch.setenv("CANOPY_LDAP_URL", "ldaps://ldap.example.org")
    launch.prepare(command)
    [(packages, files)] = wanted
    assert files == ["requirements.txt", "requirements-ldap.txt"]
    assert {"gcc", "libldap2-dev", "libsasl2-dev"} <= set(packages)
    stamps.record("requirements-ldap.txt")
    launch.prepare("user")
    assert len(wanted) == 1

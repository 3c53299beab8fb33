"""The wheel has all that the commands need: the configs, the templates and the published tables."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.harness.paths import REPOSITORY
from tests.harness.support import Workplace

CALL = "import sys; from ablations.command import CONF, main; sys.argv[0] = 'bbcu'; print(CONF); main()"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The contents of the wheel as an installation unpacks them."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_has_every_file_of_the_packages_that_is_not_code(installed: Path) -> None:
    packages = [REPOSITORY / name for name in ("bbcu", "ablations", "analysis")]
    wanted = {
        path.relative_to(REPOSITORY)
        for package in packages
        for path in package.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    wanted |= {
        Path("ablations") / path.relative_to(REPOSITORY) for path in (REPOSITORY / "conf").rglob("*") if path.is_file()
    }
    assert wanted <= {path.relative_to(installed) for path in installed.rglob("*")}


@pytest.mark.slow
def test_the_installed_command_trains_without_a_clone(installed: Path, workplace: Workplace) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CALL, *workplace.overrides("bn=post")],
        cwd=workplace.folder,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{installed}/ablations/conf\n")
    assert workplace.names() == {"bn=post"}

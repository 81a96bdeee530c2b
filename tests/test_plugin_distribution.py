"""A plugin from elsewhere, for real: built as a wheel, installed into a clean environment, and there at once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the bin folder of an environment with the wheels of cnnviz and of the example plugin.

    What they depend on (torch and so on) is read from the environment that runs the tests. Kernels are left out, which
    take minutes to compile: tests/packaging has them.
    """
    place = tmp_path_factory.mktemp("clean")
    ignore = shutil.ignore_patterns(".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", "tests")
    shutil.copytree(ROOT, place / "source", ignore=ignore)
    wheels = place / "wheels"
    wheel = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(wheels))
    for source in (place / "source", place / "source" / "plugins" / "acme-viz"):
        _run(*wheel, str(source), CNNVIZ_BUILD="off")
    _run(sys.executable, "-m", "venv", "--without-pip", str(place / "venv"))
    python = place / "venv" / "bin" / "python"
    files = [str(wheel) for wheel in wheels.glob("*.whl")]
    assert len(files) == 2
    _run(sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", *files)
    (site,) = (place / "venv" / "lib").glob("python*/site-packages")
    # Appended as a plain path, its own .pth files, and so the editable cnnviz, are not followed.
    (site / "tests-dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python.parent


def _run(*command: str, cwd: Path | None = None, **environment: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=cwd, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_cnnviz_is_the_installed_wheel(environment: Path, tmp_path: Path) -> None:
    where = _run(str(environment / "python"), "-c", "import cnnviz; print(cnnviz.__file__)", cwd=tmp_path)
    assert str(environment.parent) in where


def test_it_is_listed_with_its_distribution(environment: Path, tmp_path: Path) -> None:
    listed = json.loads(_run(str(environment / "cnnviz"), "list", "--json", cwd=tmp_path))
    assert {"name": "acme-energy", "distribution": "acme-viz", "version": "1.0.0"} in listed
    assert len({row["name"] for row in listed}) == len(listed)


def test_it_has_its_own_flags(environment: Path, tmp_path: Path) -> None:
    told = _run(str(environment / "cnnviz"), "explain", "acme-energy", "--help", cwd=tmp_path)
    assert "--power" in told
    assert "exponent of the gradient" in told.lower()
    assert "from 0.5 to 4" in " ".join(told.split())


def test_it_explains_from_the_command_line(environment: Path, tmp_path: Path) -> None:
    image = ROOT / "cnnviz" / "data" / "pictures" / "chelsea.png"
    command = (str(environment / "cnnviz"), "explain", "acme-energy", str(image), "--power", "1.5", "--json")
    told = json.loads(_run(*command, cwd=tmp_path))
    assert told["provenance"]["distribution"] == "acme-viz"
    assert told["provenance"]["options"] == {"power": 1.5}
    assert (tmp_path / "cnnviz-out" / "acme-energy" / "figure-000.png").is_file()


def test_it_is_in_the_report(environment: Path, tmp_path: Path) -> None:
    image = ROOT / "cnnviz" / "data" / "pictures" / "chelsea.png"
    command = (str(environment / "cnnviz"), "report", str(image), "--technique", "acme-energy", "--out", "page.html")
    _run(*command, cwd=tmp_path)
    assert 'id="acme-energy"' in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_it_is_in_the_api_and_passes_the_conformance_suite(environment: Path, tmp_path: Path) -> None:
    code = "import cnnviz.testing as t; print(t.check_technique('acme-energy', power=1.0)[-1])"
    assert _run(str(environment / "python"), "-c", code, cwd=tmp_path).strip() == "threads"


def test_it_can_be_switched_off(environment: Path, tmp_path: Path) -> None:
    listed = json.loads(_run(str(environment / "cnnviz"), "--no-plugins", "list", "--json", cwd=tmp_path))
    assert {row["distribution"] for row in listed} == {"cnnviz"}
    listed = json.loads(_run(str(environment / "cnnviz"), "--block-plugin", "acme-viz", "list", "--json", cwd=tmp_path))
    assert "acme-energy" not in {row["name"] for row in listed}
    listed = json.loads(_run(str(environment / "cnnviz"), "--allow-plugin", "other", "list", "--json", cwd=tmp_path))
    assert "acme-energy" not in {row["name"] for row in listed}
    assert "grad-cam" in {row["name"] for row in listed}


def test_the_wheel_carries_weights_picture_template_and_licences(environment: Path) -> None:
    (site,) = (environment.parent / "lib").glob("python*/site-packages")
    for name in (
        "cnnviz/models/weights/mobilenet_v2.safetensors",
        "cnnviz/data/pictures/chelsea.png",
        "cnnviz/report/templates/report.html.j2",
        "cnnviz/py.typed",
    ):
        assert (site / name).is_file(), name
    (info,) = site.glob("cnnviz-*.dist-info")
    assert {"LICENSE", "NOTICE"} <= {path.name for path in info.rglob("*")}

"""Installations of every kind: what is in them, what happens without a compiler, and other versions of torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
MODULES = {"_C", "_host"}

pytestmark = pytest.mark.skipif(os.environ.get("CNNVIZ_NATIVE") == "0", reason="tells how native code is built")


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of what a checkout holds, so that a build leaves nothing here."""
    copy = tmp_path / "sources"
    for name in ("cnnviz", "csrc", "plugins"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("*.so", "_build.json", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE", "MANIFEST.in"):
        shutil.copy(ROOT / name, copy)
    return copy


def _run(*command: str, cwd: Path, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def _pip(*arguments: str, cwd: Path, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    flags = ("--no-build-isolation", "--no-deps", "--disable-pip-version-check")
    return _run(sys.executable, "-m", "pip", *arguments, *flags, cwd=cwd, check=check, **environment)


def _modules(names: list[str]) -> set[str]:
    return {Path(name).name.split(".")[0] for name in names if name.endswith((".so", ".pyd", ".dylib"))}


STATUS = """
import json, torch
from cnnviz import ops
x = torch.arange(24.0).reshape(1, 2, 3, 4)
print(json.dumps([torch.__version__, ops.__file__, ops.status(), ops.gram_matrix(x, normalise=False).tolist()]))
"""


def _status(folder: Path, python: str = sys.executable) -> tuple[str, str, dict[str, str], object]:
    """Import what was installed into a folder, and nothing else of cnnviz."""
    done = _run(python, "-S", "-c", f"import sys; sys.path[:0] = {_paths(folder, python)!r}\n{STATUS}", cwd=folder)
    version, file, status, gram = json.loads(done.stdout.splitlines()[-1])
    assert Path(file).is_relative_to(folder)
    return version, file, status, gram


def _paths(folder: Path, python: str) -> list[str]:
    listed = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return [str(folder), listed.stdout.strip()]


def test_a_wheel_from_a_source_distribution_has_the_kernels(sources: Path, tmp_path: Path) -> None:
    _run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(tmp_path), ".", cwd=sources)
    (archive,) = tmp_path.glob("cnnviz-*.tar.gz")
    with tarfile.open(archive) as held:
        names = held.getnames()
    assert any(name.endswith("csrc/cpu/occlude.cpp") for name in names)
    assert any(name.endswith("csrc/cuda/occlude.cu") for name in names)
    assert not any(name.endswith(("_build.json", ".so")) for name in names)
    _pip("wheel", str(archive), "--wheel-dir", str(tmp_path), cwd=tmp_path, CNNVIZ_BUILD="cpu")
    (wheel,) = tmp_path.glob("cnnviz-*.whl")
    with zipfile.ZipFile(wheel) as held:
        assert _modules(held.namelist()) == MODULES
    _pip("install", str(wheel), "--target", str(tmp_path / "site"), cwd=tmp_path)
    _, _, status, gram = _status(tmp_path / "site")
    assert status["cpu"].startswith("native (")
    assert status["cuda"] == "PyTorch: left out by CNNVIZ_BUILD=cpu"
    assert gram == [[[506.0, 1298.0], [1298.0, 3818.0]]]
    _loads_in_another_torch(wheel, tmp_path)


def _loads_in_another_torch(wheel: Path, folder: Path) -> None:
    """The same file, in an environment whose torch is not the one that it was built with."""
    other = os.environ.get("CNNVIZ_OTHER_TORCH")
    if not other:
        return
    python = folder / "other" / "bin" / "python"
    _run(sys.executable, "-m", "venv", str(folder / "other"), cwd=folder)
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    # torchvision, which belongs to one torch, isn't needed here
    needed = [one for one in declared if not one.startswith("torch")]
    _run(str(python), "-m", "pip", "install", "--quiet", "torch==" + other, *needed, cwd=folder)
    _run(
        str(python),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(folder / "there"),
        str(wheel),
        cwd=folder,
    )
    version, _, status, gram = _status(folder / "there", str(python))
    assert version.split("+")[0] == other != torch.__version__.split("+")[0]
    assert status["cpu"].startswith("native (")
    assert torch.__version__.split("+")[0] in status["cpu"]
    assert gram == [[[506.0, 1298.0], [1298.0, 3818.0]]]


def test_a_wheel_without_native_code_fits_every_platform(sources: Path, tmp_path: Path) -> None:
    _pip("wheel", ".", "--wheel-dir", str(tmp_path), cwd=sources, CNNVIZ_BUILD="off")
    (wheel,) = tmp_path.glob("cnnviz-*-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as held:
        assert not _modules(held.namelist())
    _pip("install", str(wheel), "--target", str(tmp_path / "site"), cwd=tmp_path)
    assert _status(tmp_path / "site")[2]["cpu"] == "PyTorch: left out by CNNVIZ_BUILD=off"


def test_without_a_compiler_it_installs_and_says_why(sources: Path, tmp_path: Path) -> None:
    broken = {"CXX": "false", "CC": "false"}
    done = _pip(
        "install",
        ".",
        "--target",
        str(tmp_path / "site"),
        "-v",
        cwd=sources,
        CNNVIZ_BUILD="auto",
        CUDA_HOME="/nowhere",
        **broken,
    )
    assert "cnnviz: _C is left out; building it failed" in done.stdout + done.stderr
    _, _, status, gram = _status(tmp_path / "site")
    assert status["cpu"].startswith("PyTorch: building it failed: ")
    assert gram == [[[506.0, 1298.0], [1298.0, 3818.0]]]


@pytest.mark.parametrize("mode", ["cpu", "cuda"])
def test_where_native_code_is_asked_for_a_failure_is_one(sources: Path, tmp_path: Path, mode: str) -> None:
    broken = {"CXX": "false", "CC": "false", "CUDA_HOME": "/nowhere", "CNNVIZ_BUILD": mode}
    done = _pip("install", ".", "--target", str(tmp_path / "site"), cwd=sources, check=False, **broken)
    assert done.returncode != 0
    assert f"cnnviz: CNNVIZ_BUILD={mode}, but _C was not built" in done.stdout + done.stderr
    assert not (tmp_path / "site" / "cnnviz").exists()


def test_a_build_mode_that_is_none_is_told(sources: Path, tmp_path: Path) -> None:
    done = _pip("wheel", ".", "--wheel-dir", str(tmp_path), cwd=sources, check=False, CNNVIZ_BUILD="gpu")
    assert done.returncode != 0
    assert "CNNVIZ_BUILD is 'gpu', expected one of auto, off, cpu, cuda" in done.stdout + done.stderr


def test_an_isolated_build_has_no_torch_and_says_so(sources: Path, tmp_path: Path) -> None:
    """What plain `pip install .` does: the kernels need the very torch that they will run with."""
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv[1:] = ['bdist_wheel', '-d', sys.argv[1]]; "
        "exec(open('setup.py').read())"
    )
    _run(sys.executable, "-c", code, str(tmp_path), cwd=sources, CNNVIZ_BUILD="auto")
    (wheel,) = tmp_path.glob("cnnviz-*.whl")
    with zipfile.ZipFile(wheel) as held:
        missing = json.loads(held.read("cnnviz/_build.json"))
    assert missing["_C"].startswith("torch was not there at build time; install torch, pybind11 and ninja")


@pytest.mark.parametrize(("mode", "works"), [("auto", True), ("cpu", False)])
def test_a_torch_that_does_not_load_is_told(sources: Path, tmp_path: Path, mode: str, works: bool) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise OSError('libtorch.so: cannot open shared object file')\n")
    done = _run(
        sys.executable,
        "setup.py",
        "bdist_wheel",
        "-d",
        str(tmp_path),
        cwd=sources,
        check=works,
        CNNVIZ_BUILD=mode,
        PYTHONPATH=str(tmp_path),
    )
    why = "torch did not load (libtorch.so: cannot open shared object file) at build time; install torch"
    if not works:
        assert f"CNNVIZ_BUILD=cpu, but _C was not built: {why}" in done.stderr
        assert "Traceback" not in done.stderr
        return
    (wheel,) = tmp_path.glob("cnnviz-*.whl")
    with zipfile.ZipFile(wheel) as held:
        assert json.loads(held.read("cnnviz/_build.json"))["_C"].startswith(why)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("goal", ["test-gpu", "bench-gpu"])
def test_what_asks_for_a_gpu_is_built_for_one(tmp_path: Path, goal: str) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("pyproject.toml", "constraints.txt", "setup.py"):
        (tmp_path / name).touch()
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "ready").touch()  # as built before, for no GPU
    told = _run("make", "-n", goal, cwd=tmp_path, CNNVIZ_BUILD="", FORCE_CUDA="", TORCH_CUDA_ARCH_LIST="").stdout
    assert "--editable" in told, "it is built again"
    assert 'echo "cuda" >.venv/built-as' in told
    assert told.index("--editable") < told.index({"test-gpu": "tests/gpu.sh", "bench-gpu": "--device cuda"}[goal])
    (tmp_path / ".venv" / "ready").touch()
    (tmp_path / ".venv" / "built-as").write_text("cuda\n")
    again = _run("make", "-n", goal, cwd=tmp_path, CNNVIZ_BUILD="", FORCE_CUDA="", TORCH_CUDA_ARCH_LIST="").stdout
    assert "--editable" not in again


def test_an_editable_installation_leaves_the_kernels_beside_the_sources(sources: Path, tmp_path: Path) -> None:
    for kernel in (sources / "csrc" / "cpu").glob("*.cpp"):
        if kernel.name != "module.cpp":  # one file shows where files come to lie, and is built in no time
            kernel.unlink()
    python = tmp_path / "venv" / "bin" / "python"
    _run(sys.executable, "-m", "venv", "--system-site-packages", str(tmp_path / "venv"), cwd=tmp_path)
    flags = ("--no-build-isolation", "--no-deps", "--quiet", "--disable-pip-version-check")
    paths = {"PYTHONPATH": _paths(tmp_path, sys.executable)[1], "CNNVIZ_BUILD": "cpu"}
    _run(str(python), "-m", "pip", "install", *flags, "--editable", ".", cwd=sources, **paths)
    assert _modules([file.name for file in (sources / "cnnviz").iterdir()]) == MODULES
    _run(
        str(python), "-m", "pip", "install", *flags, "--editable", ".", cwd=sources, **{**paths, "CNNVIZ_BUILD": "off"}
    )
    assert not _modules([file.name for file in (sources / "cnnviz").iterdir()])

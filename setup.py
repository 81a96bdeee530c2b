"""Build the native modules, which pyproject.toml cannot describe.

CNNVIZ_BUILD=auto  what can be built here; what cannot is left out, and `cnnviz info` tells why (the default)
CNNVIZ_BUILD=off   nothing
CNNVIZ_BUILD=cpu   the CPU's kernels, or no installation
CNNVIZ_BUILD=cuda  the GPU's as well, or no installation; FORCE_CUDA=1 turns auto into it

Whether CUDA is wanted depends on torch and the toolkit, never on a GPU being present. MAX_JOBS bounds the compilers run
at once, CUDA_HOME names the toolkit, TORCH_CUDA_ARCH_LIST the architectures.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

MODES = ("auto", "off", "cpu", "cuda")
CPU = ("_C", "_host")
CUDA = ("_C_cuda",)
TORCH_2_11 = "0x020b000000000000"  # the oldest torch whose stable interface is asked for; newer ones keep it
ARCHITECTURES = "8.0;9.0+PTX"


def mode() -> str:
    """Read CNNVIZ_BUILD and FORCE_CUDA."""
    chosen = os.environ.get("CNNVIZ_BUILD", "auto")
    if chosen not in MODES:
        raise SystemExit(f"CNNVIZ_BUILD is {chosen!r}, expected one of {', '.join(MODES)}")
    return "cuda" if chosen == "auto" and os.environ.get("FORCE_CUDA") == "1" else chosen


def toolkit() -> str | None:
    """Return the folder of the CUDA toolkit; an nvcc on the PATH may be a script that calls another: ask it."""
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc")
    if named or not nvcc:
        usual = Path("/usr/local/cuda")
        return named or (str(usual) if usual.is_dir() else None)
    told = subprocess.run(
        [nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, check=False
    ).stderr
    top = re.search(r"^#\$ TOP=(.+)$", told, re.MULTILINE)
    return str(Path(top[1].strip()).resolve()) if top else None


def plan(mode: str) -> tuple[list[Extension], dict[str, str]]:
    """Return the modules to build, and for each other one why it is not."""
    if mode == "off":
        return [], dict.fromkeys(CPU + CUDA, "left out by CNNVIZ_BUILD=off")
    cuda_home = toolkit()
    if cuda_home:
        os.environ["CUDA_HOME"] = cuda_home  # torch reads it once, when its build tools are imported
    try:
        import pybind11
        import torch
        from torch.utils.cpp_extension import CppExtension, CUDAExtension
    except (ImportError, OSError) as error:
        lacking = f"{error.name} was not there" if isinstance(error, ImportError) else f"torch did not load ({error})"
        why = f"{lacking} at build time; install torch, pybind11 and ninja, then cnnviz with pip's --no-build-isolation"
        return [], dict.fromkeys(CPU + CUDA, why)

    flags = ["-O3", f"-DTORCH_TARGET_VERSION={TORCH_2_11}"]
    own = [*flags, "-fvisibility=hidden"]  # what holds torch's stable tensors must be as hidden as they are
    cpu = CppExtension("cnnviz._C", sources("cpu"), py_limited_api=True, extra_compile_args={"cxx": own})
    host = Extension("cnnviz._host", sources("host"), include_dirs=[pybind11.get_include(), *cpu.include_dirs])
    if mode == "cpu":
        return [cpu, host], dict.fromkeys(CUDA, "left out by CNNVIZ_BUILD=cpu")
    if torch.version.cuda is None:
        return [cpu, host], dict.fromkeys(CUDA, "torch was built without CUDA")
    if not cuda_home:
        return [cpu, host], dict.fromkeys(CUDA, "no CUDA toolkit was found; set CUDA_HOME to its folder")
    architectures = os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ARCHITECTURES)
    host.define_macros.append(("CNNVIZ_CUDA", f'"CUDA {torch.version.cuda} for {architectures}"'))
    cuda = CUDAExtension(
        "cnnviz._C_cuda",
        sources("cuda"),
        py_limited_api=True,
        extra_compile_args={"cxx": [*flags, "-DUSE_CUDA"], "nvcc": [*flags, "-DUSE_CUDA"]},
    )
    return [cpu, host, cuda], {}


def sources(folder: str) -> list[str]:
    """Return what is compiled for a module."""
    return sorted(str(file) for file in Path("csrc", folder).iterdir() if file.suffix in {".cpp", ".cu"})


MODE = mode()
EXTENSIONS, MISSING = plan(MODE)
REQUIRED = {"auto": (), "off": (), "cpu": CPU, "cuda": CPU + CUDA}[MODE]


def refuse(module: str, why: object) -> None:
    """End the installation where a module that was asked for cannot be."""
    if module in REQUIRED:
        raise SystemExit(f"cnnviz: CNNVIZ_BUILD={MODE}, but {module} was not built: {why}")


for module, reason in MISSING.items():
    refuse(module, reason)


def package(command: Any) -> Path:
    """Return where a command puts the package's files: beside the sources for an editable installation."""
    in_place = command.editable_mode or getattr(command, "inplace", False)
    return Path("cnnviz") if in_place else Path(command.build_lib, "cnnviz")


def note(command: Any) -> None:
    """Leave word of what is missing, for `cnnviz info`."""
    package(command).mkdir(parents=True, exist_ok=True)
    package(command).joinpath("_build.json").write_text(json.dumps(MISSING, indent=1) + "\n")


class BuildPython(build_py):
    """Copy the Python files, without what an earlier build left among them."""

    def run(self) -> None:
        super().run()
        for name in CPU + CUDA:
            for stale in package(self).glob(f"{name}.*"):
                stale.unlink()
        note(self)


def building_each() -> type[build_ext]:
    """Return torch's build command, going on without the modules that may be missing."""
    from torch.utils.cpp_extension import BuildExtension

    class BuildEach(BuildExtension):
        def build_extensions(self) -> None:
            wanted, built = self.extensions, []
            for extension in wanted:
                self.extensions = [extension]
                name = extension.name.rpartition(".")[2]
                try:
                    super().build_extensions()
                    built.append(extension)
                except Exception as error:  # noqa: BLE001  whatever a compiler or torch's own checks come up with
                    refuse(name, error)
                    first = (str(error) or repr(error)).splitlines()[0]
                    MISSING[name] = f"building it failed: {first} (pip install --verbose shows the compiler's messages)"
                    print(f"cnnviz: {name} is left out; {MISSING[name]}", file=sys.stderr)
            self.extensions = built
            note(self)

    return BuildEach


setup(
    ext_modules=EXTENSIONS,
    cmdclass={"build_py": BuildPython, **({"build_ext": building_each()} if EXTENSIONS else {})},
)

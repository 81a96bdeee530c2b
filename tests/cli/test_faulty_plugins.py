"""What the command line makes of plugins that misbehave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FINE = """
import cnnviz
class Options(cnnviz.Options):
    out: float = cnnviz.Field(1.0, ge=0, description="has the name of a flag that every technique has")
def fine(request, options):
    "Nothing but ones."
    return request.inputs[:, :1] * 0 + options.out
@cnnviz.hookimpl
def cnnviz_techniques(register):
    register(cnnviz.Technique("fine", fine, Options))
"""


@pytest.fixture
def shell(tmp_path: Path):
    """Install three plugins, two of them faulty, and return a function that runs the command line with them."""
    site = tmp_path / "site"
    for name, source in {
        "fine": FINE,
        "leaves": "raise SystemExit('no licence')",
        "broken": "import nowhere_to_be_found",
    }.items():
        (site / f"{name}_plugin-1.2.dist-info").mkdir(parents=True)
        (site / f"{name}_plugin-1.2.dist-info" / "METADATA").write_text(f"Name: {name}-plugin\nVersion: 1.2\n")
        points = f"[cnnviz]\n{name} = {name}_plugin\n"
        (site / f"{name}_plugin-1.2.dist-info" / "entry_points.txt").write_text(points)
        (site / f"{name}_plugin.py").write_text(source)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cnnviz", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(site)}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.fixture
def photo(tmp_path: Path) -> str:
    from cnnviz.data import demo_picture

    demo_picture().resize((90, 60)).save(tmp_path / "cat.png")
    return str(tmp_path / "cat.png")


def test_list_names_them_all_and_info_says_what_is_wrong(shell) -> None:
    listed = shell("list", "--json")
    assert listed.returncode == 0
    assert {"fine", "leaves", "broken", "grad-cam"} <= {row["name"] for row in json.loads(listed.stdout)}
    told = shell("info", "--json")
    assert told.returncode == 0
    status = {row["name"]: row["status"] for row in json.loads(told.stdout)["plugins"]}
    assert "no licence" in status["leaves"]
    assert "leaves-plugin 1.2" in status["leaves"]
    assert "nowhere_to_be_found" in status["broken"]
    assert status["fine"] == status["grad-cam"] == "ok"
    assert "nowhere_to_be_found" in shell("info").stdout


def test_a_faulty_one_is_refused_in_one_line_and_the_others_work(shell, photo: str) -> None:
    done = shell("explain", "leaves", photo)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "the plugin for 'leaves' from leaves-plugin 1.2" in done.stderr
    assert "fine" in shell("explain", "--help").stdout
    assert shell("explain", "fine", photo, "--out", "result").returncode == 0


def test_an_option_with_the_name_of_a_common_flag_gets_a_prefix(shell, photo: str) -> None:
    done = shell("explain", "fine", photo, "--fine-out", "3", "--out", "result", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["provenance"]["options"] == {"out": 3.0}


def test_report_leaves_faulty_ones_out(shell, photo: str, tmp_path: Path) -> None:
    done = shell("report", photo, "--out", "page.html", "--technique", "fine")
    assert done.returncode == 0, done.stderr
    assert 'id="fine"' in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert shell("report", photo, "--technique", "broken").returncode == 2


RAISES = """
import cnnviz
class Options(cnnviz.Options):
    pass
def raises(request, options):
    "Nothing, as it fails."
    raise {how}
@cnnviz.hookimpl
def cnnviz_techniques(register):
    register(cnnviz.Technique("fine", raises, Options))
"""


@pytest.mark.parametrize("how", ["ValueError('out of luck')", "SystemExit(0)"])
def test_a_technique_that_fails_while_it_runs_takes_no_other_down(shell, photo: str, tmp_path: Path, how: str) -> None:
    (tmp_path / "site" / "fine_plugin.py").write_text(RAISES.format(how=how))
    done = shell("explain", "fine", photo)
    assert done.returncode in (1, 2)
    assert done.stderr.startswith("cnnviz: ")
    assert done.stderr.count("\n") == 1
    done = shell("report", photo, "--technique", "fine", "--technique", "saliency", "--out", "page.html", "--json")
    assert done.returncode == 0, done.stderr
    (section,) = json.loads(done.stdout)["sections"]
    assert set(section["techniques"]) == {"saliency"}
    assert set(section["failures"]) == {"fine"}
    assert "Could not run" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_an_architecture_in_the_current_folder_is_found(shell, photo: str, tmp_path: Path) -> None:
    (tmp_path / "my_net.py").write_text(
        "import cnnviz, torch\n"
        "from torch import nn\n"
        "def build():\n"
        "    body = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()\n"
        "    net = nn.Sequential(*body, nn.Linear(4, 3))\n"
        "    return cnnviz.Model(net.eval(), 'mine', cnnviz.Preprocess(resize=32, crop=(32, 32)), ('a', 'b', 'c'))\n"
        "def save():\n"
        "    net = build().module\n"
        "    with torch.no_grad():\n"
        "        net[4].bias.copy_(torch.tensor([0.0, 0.0, 99.0]))\n"
        "    torch.save(net.state_dict(), 'trained.pt')\n"
        "def broken():\n"
        "    raise KeyError('depth')\n"
    )
    subprocess.run([sys.executable, "-c", "import my_net; my_net.save()"], cwd=tmp_path, check=True)
    done = shell("explain", "grad-cam", photo, "--model", "my_net:build", "--weights", "trained.pt", "--json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["results"]
    assert row["label"] == "c", "the file's weights were loaded"
    assert row["score"] > 90
    done = shell("layers", "my_net:broken")
    assert done.returncode == 2
    assert "'my_net:broken' failed: KeyError('depth')" in done.stderr

"""Files and folders are written whole or not at all, and nothing of anybody else's is lost."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from cnnviz import SaveError
from cnnviz.writing import Kind, check_file, write_file

KIND = Kind("a result", ("*.png", "told.json"), sidecar="told.json", keys=("format",))


def names(folder: str = ".") -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def fill(text: str, told: dict[str, int] | None = None):
    def write(folder: Path) -> None:
        (folder / "a.png").write_text(text)
        (folder / "told.json").write_text(json.dumps(told or {"format": 1}))

    return write


def test_a_new_file_has_the_mode_that_files_get() -> None:
    """As the umask has it."""
    before = os.umask(0o027)
    try:
        made = write_file("new.txt", "é")
    finally:
        os.umask(before)
    assert made == Path.cwd() / "new.txt"
    assert made.read_bytes() == "é".encode()
    assert made.stat().st_mode & 0o777 == 0o640
    assert names() == ["new.txt"]


@pytest.mark.parametrize("mode", [0o600, 0o664])
def test_a_file_that_is_there_keeps_its_mode(mode: int) -> None:
    place = Path("kept.txt")
    place.write_text("old")
    place.chmod(mode)
    write_file(place, "new")
    assert (place.read_text(), place.stat().st_mode & 0o777) == ("new", mode)


def test_links_stay() -> None:
    Path("real").mkdir()
    Path("real/file.txt").write_text("old")
    Path("link.txt").symlink_to("real/file.txt")
    Path("gone.txt").symlink_to("real/later.txt")
    assert write_file("link.txt", "new") == Path("real/file.txt").absolute()
    write_file("gone.txt", "later")
    assert [Path(name).is_symlink() for name in ("link.txt", "gone.txt")] == [True, True]
    assert (Path("real/file.txt").read_text(), Path("real/later.txt").read_text()) == ("new", "later")


def test_a_pipe_is_written_into() -> None:
    os.mkfifo("pipe")
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(Path("pipe").read_bytes()))
    reader.start()
    write_file("pipe", "through")
    reader.join(10)
    assert got == [b"through"]
    assert Path("pipe").is_fifo()
    assert names() == ["pipe"]
    assert write_file("/dev/null", "nowhere").is_char_device()


def test_a_file_that_cannot_be_written_is_told_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_file("deep/er/page.html") == Path("deep/er/page.html").absolute()
    assert check_file("/dev/null") == Path("/dev/null")
    assert names() == [], "nothing is made"
    Path("folder").mkdir()
    Path("file").touch()
    with pytest.raises(SaveError, match=r"folder' is a folder; give a file, such as '.*folder/index.html'"):
        check_file("folder")
    with pytest.raises(SaveError, match=r"page.html' cannot be written, for '.*file' is a file; give another place"):
        check_file("file/page.html")
    monkeypatch.setattr("os.access", lambda path, _: Path(path) != Path("folder").absolute())  # root may write anywhere
    with pytest.raises(SaveError, match=r"cannot be written, for '.*folder' may not; give a folder"):
        check_file("folder/page.html")


@pytest.mark.parametrize("sidecar", [None, "no JSON", "[]", '{"mine": 1}'])
def test_only_a_folder_that_says_so_is_replaced(sidecar: str | None) -> None:
    """However its files are called."""
    place = Path("mine")
    place.mkdir()
    (place / "holiday.png").write_text("dear")
    if sidecar is not None:
        (place / "told.json").write_text(sidecar)
    before = {path.name: path.read_text() for path in place.iterdir()}
    told = r"holds something else than a result: holiday.png without told.json of cnnviz; give a new or an empty"
    with pytest.raises(SaveError, match=told):
        KIND.write(place, fill("new"))
    assert {path.name: path.read_text() for path in place.iterdir()} == before


@pytest.mark.parametrize("moved", range(5))
def test_a_folder_whose_writer_was_killed_is_known_again(moved: int) -> None:
    """Wherever in the exchange that was."""
    place = KIND.write("out", fill("old"))
    scratch = place / ".cnnviz-killed"
    for folder in ("new", "old"):
        (scratch / folder).mkdir(parents=True)
    fill("new")(scratch / "new")
    moves = [(place / name, scratch / "old" / name) for name in ("told.json", "a.png")]
    moves += [(scratch / "new" / name, place / name) for name in ("a.png", "told.json")]
    for source, goal in moves[:moved]:
        source.rename(goal)
    KIND.write(place, fill("newest"))
    assert {path.name for path in place.iterdir()} == {"a.png", "told.json"}
    assert (place / "a.png").read_text() == "newest"


@pytest.mark.parametrize("there", [True, False])
def test_several_write_to_one_folder(there: bool) -> None:
    """The last one's stays, whole."""
    if there:
        KIND.write("out", fill("old"))
    together = threading.Barrier(4)
    failed: list[BaseException] = []

    def work(number: int) -> None:
        def write(folder: Path) -> None:
            together.wait(10)
            fill(str(number), {"format": number})(folder)
            together.wait(10)

        try:
            for _ in range(20):
                KIND.write("out", write)
        except (OSError, threading.BrokenBarrierError) as error:
            failed.append(error)
            together.abort()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert names("out") == ["a.png", "told.json"]
    assert names() == ["out"]
    told = json.loads(Path("out/told.json").read_text())
    assert Path("out/a.png").read_text() == str(told["format"])


@pytest.fixture(autouse=True)
def _empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

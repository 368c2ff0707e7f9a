"""A process ends with the last of those who use it, and whoever comes while it ends waits."""

import subprocess
import sys
import threading
import time
from pathlib import Path

from labeling.shared_use import Use, unused

ROOT = Path(__file__).resolve().parents[2]
USER = "import sys, time; from pathlib import Path; from labeling.shared_use import Use\n"
USER += "use = Use(Path(sys.argv[1])); print('in use', flush=True); time.sleep(60)"


def test_the_last_user_is_told_so(tmp_path: Path) -> None:
    first, second = Use(tmp_path / "users"), Use(tmp_path / "users")

    assert not unused(tmp_path / "users")
    with first.end() as last:
        assert not last
    with second.end() as last:
        assert last


def test_a_killed_user_uses_nothing(tmp_path: Path) -> None:
    users = tmp_path / "users"
    with subprocess.Popen(
        [sys.executable, "-c", USER, str(users)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == "in use\n"
        assert not unused(users)
        child.kill()

    assert unused(users)


def test_who_comes_while_it_ends_waits_until_it_has_ended(tmp_path: Path) -> None:
    users = tmp_path / "users"
    code = "import sys, time; from pathlib import Path; from labeling.shared_use import unused\n"
    code += "assert unused(Path(sys.argv[1])); print('ending', flush=True); time.sleep(60)"
    came = threading.Event()
    with subprocess.Popen(
        [sys.executable, "-c", code, str(users)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == "ending\n"
        coming = threading.Thread(target=lambda: (Use(users), came.set()))
        coming.start()
        time.sleep(0.2)
        assert not came.is_set()
        child.kill()
        assert came.wait(10)
        coming.join()

"""The pytest plug-in on the embedded server: one process, workers, a worker that dies."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import make_url
from support.projects import lines

on_embedded = pytest.mark.parametrize("worker_database", ["embedded"], indirect=True)


NEIGHBOURS = """
import re
import pytest

@pytest.mark.parametrize("n", range(10))
def test(n, add, rows, clean_database, cleaner_url, worker_id):
    assert re.search(r"/test_gw[01](_g[0-9]+)?[?]", cleaner_url)
    assert rows() == []
    for turn in range(5):
        add(worker_id)
        assert rows() == [(i + 1, worker_id) for i in range(turn + 1)]
"""


def test_workers_on_the_embedded_server_never_see_a_neighbours_row(
    project: pytest.Pytester,
) -> None:
    project.makepyprojecttoml("[tool.cleaner]\n")
    project.makepyfile(NEIGHBOURS)
    result = project.runpytest_subprocess("-n2", "--dist=load", "--cleaner-report", "-v")
    result.assert_outcomes(passed=10)
    assert {line.split("]")[0] for line in lines(result, "PASSED")} == {"[gw0", "[gw1"}
    result.stdout.fnmatch_lines(["20 cleans in *", "  auto: 20 cleans*"])
    result.stdout.fnmatch_lines(["cleaner: auto on postgresql * (embedded), *"])


def test_a_crashed_worker_is_replaced_by_one_with_a_clean_database(
    project: pytest.Pytester,
) -> None:
    project.makepyprojecttoml("[tool.cleaner]\nautouse = true")
    project.makepyfile(
        """
        import os
        import signal
        import pytest

        def test_crash(add):
            add()
            os.kill(os.getpid(), signal.SIGKILL)

        @pytest.mark.parametrize("n", range(8))
        def test(n, rows, add):
            assert rows() == []
            add()
        """
    )
    result = project.runpytest_subprocess("-n2")
    result.assert_outcomes(passed=8, failed=1)
    result.stdout.fnmatch_lines(["*worker 'gw?' crashed*"])


def test_without_a_url_one_process_has_the_embedded_server_to_itself(
    project: pytest.Pytester,
) -> None:
    project.makepyprojecttoml('[tool.cleaner]\nstrategy = "delete"')
    project.makepyfile(
        "def test(cleaner_url, clean_database, add, request):\n    add()\n"
        "    import pathlib, sqlalchemy\n"
        "    host = sqlalchemy.make_url(cleaner_url).query['host']\n"
        "    pathlib.Path('directory').write_text(host)"
    )
    result = project.runpytest_subprocess("-p", "no:xdist")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["cleaner: delete on postgresql * (embedded), database test_main"])
    assert not Path((project.path / "directory").read_text()).exists()


def test_each_worker_can_have_a_server_of_its_own(project: pytest.Pytester) -> None:
    project.makepyprojecttoml(
        '[tool.cleaner]\nisolation = "server"\nexport = ["DATABASE_URL"]\nautouse = true'
    )
    project.makepyfile(
        """
        import os
        import pytest

        @pytest.mark.parametrize("n", range(10))
        def test(n, add, rows, cleaner_url):
            with open("urls", "a") as file:
                file.write(f"{cleaner_url}\\n")
            assert os.environ["DATABASE_URL"] == cleaner_url
            assert rows() == []
            add()
        """
    )
    result = project.runpytest_subprocess("-n2", "--dist=load")
    result.assert_outcomes(passed=10)
    result.stdout.fnmatch_lines(["cleaner: auto on postgresql * (embedded, one for each worker)*"])
    urls = {make_url(line) for line in (project.path / "urls").read_text().split()}
    assert len({(url.query.get("host"), url.port) for url in urls}) == 2
    project.makepyprojecttoml('[tool.cleaner]\nisolation = "server"\nurl = "postgresql:///a_test"')
    result = project.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(['*isolation is "server", and url is set.*'])

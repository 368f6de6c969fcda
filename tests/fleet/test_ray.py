"""A fleet on a real Ray cluster of two nodes, each with one processor."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import EXAMPLES
from tests.fleet.conftest import WORKER, Fleet, gone, until
from trueport.errors import TrueportError
from trueport.fleet import run

pytestmark = [pytest.mark.xdist_group("ray"), pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    started = _started(cpus=1)
    started.add_node(num_cpus=1, object_store_memory=80_000_000)
    yield started
    started.shutdown()


def _started(cpus: int) -> Any:
    """A cluster of one node."""
    from ray.cluster_utils import Cluster

    started = Cluster()
    # A node that is gone is found out in a second, and not in fifteen.
    looks = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 300, "health_check_failure_threshold": 3}
    started.add_node(num_cpus=cpus, object_store_memory=80_000_000, include_dashboard=False, _system_config=looks)
    return started


@pytest.fixture
def words(cluster: Any) -> tuple[str, ...]:
    return ("--engine", "ray", "--address", cluster.address)


def _go(fleet: Fleet) -> None:
    (fleet.folder / "go").touch()


def test_both_nodes_work_and_nothing_is_done_twice(fleet: Fleet, cluster: Any) -> None:
    fleet.add("one", "linger")
    fleet.add("two", "linger")
    fleet.add("unlucky", "die", times=1)
    fleet.add("slow", "hang", time="1s")
    fleet.add("large", cpus=64)
    summary = run(fleet.plan, out=fleet.url, engine="ray", address=cluster.address, worker=WORKER, backoff=0.01)
    assert fleet.statuses() == {
        "one": "proven", "two": "proven", "unlucky": "proven", "slow": "out of time", "large": "refused"
    }  # fmt: skip
    assert summary.rows[0]["node"] != summary.rows[1]["node"]
    assert "none of the cluster's 2 nodes has 64 processors" in summary.rows[4]["reason"]
    assert fleet.artefacts() == ["one", "two", "unlucky"] and fleet.events("retry")[0]["name"] == "unlucky"
    assert (fleet.state / "logs" / "slow.1.log").exists()
    with fleet.start("--engine", "ray", "--address", cluster.address) as again:
        output, _ = again.communicate(timeout=120)
    assert again.returncode == 1 and output.count("(done before)") == 3
    assert [len(fleet.calls(name)) for name in ("one", "two", "unlucky", "large")] == [1, 1, 2, 0]


def test_a_task_and_a_node_that_are_lost(fleet: Fleet, cluster: Any, words: tuple[str, ...]) -> None:
    """Each takes its worker along, and the model is tried again."""
    fleet.add("one", "wait", cpus=2)
    third = cluster.add_node(num_cpus=2, object_store_memory=80_000_000)
    with fleet.start(*words) as driver:
        fleet.until_called("one")
        worker = fleet.calls("one")[0]
        task = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(task, signal.SIGKILL)
        until(lambda: len(fleet.calls("one")) == 2)
        until(lambda: gone(worker))
        cluster.remove_node(third, allow_graceful=False)
        until(lambda: gone(fleet.calls("one")[1]))
        cluster.add_node(num_cpus=2, object_store_memory=80_000_000)
        _go(fleet)
        output, errors = driver.communicate(timeout=120)
    assert driver.returncode == 0, output + errors
    assert all("Ray lost it" in event["reason"] for event in fleet.events("retry")) and len(fleet.calls("one")) == 3
    assert fleet.artefacts() == ["one"]


def test_a_driver_that_is_interrupted_and_one_that_is_killed(fleet: Fleet, words: tuple[str, ...]) -> None:
    fleet.add("done")
    fleet.add("one", "wait")
    fleet.add("two", "wait")
    for how in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        before = fleet.calls("one") + fleet.calls("two")
        with fleet.start(*words) as driver:
            until(lambda: len(fleet.events("finished")) == 1)
            until(lambda before=before: len(fleet.calls("one") + fleet.calls("two")) == len(before) + 2)
            driver.send_signal(how)
            _, errors = driver.communicate(timeout=120)
        codes = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}
        assert driver.returncode == codes[how]
        assert how == signal.SIGKILL or (len(errors.splitlines()) == 1 and "Interrupted: 1 of 3" in errors), errors
        until(lambda: all(map(gone, fleet.calls("one") + fleet.calls("two"))))
    _go(fleet)
    with fleet.start(*words) as after:
        _, errors = after.communicate(timeout=120)
    assert after.returncode == 0, errors
    assert [len(fleet.calls(name)) for name in ("done", "one", "two")] == [1, 4, 4]
    assert fleet.artefacts() == ["done", "one", "two"] and list(fleet.out.glob(".*")) == []
    left = Path(tempfile.gettempdir()).glob("trueport-fleet-*")  # on the nodes; beside those of other tests
    assert not [path for path in left if gone(int(path.name.split("-")[2]))]


def test_a_cluster_that_is_gone_is_one_sentence(fleet: Fleet) -> None:
    """Ray would end the process after a minute, with words of its own and a workshop left in OUT."""
    fleet.add("done")
    fleet.add("one", "wait")
    lost = _started(cpus=2)
    with fleet.start("--engine", "ray", "--address", lost.address) as driver:
        until(lambda: len(fleet.events("finished")) == 1)
        fleet.until_called("one")
        lost.remove_node(lost.head_node, allow_graceful=False)
        _, errors = driver.communicate(timeout=58)
    assert driver.returncode == 2 and len(errors.splitlines()) == 1, errors
    assert "The Ray cluster at" in errors and "is gone" in errors and "goes on" in errors
    assert all(map(gone, fleet.calls("one")))
    assert fleet.artefacts() == ["done"] and list(fleet.out.glob(".*")) == []
    _go(fleet)
    assert fleet.run().exit_code == 0 and [len(fleet.calls(name)) for name in ("done", "one")] == [1, 2]


def test_no_cluster_is_one_sentence(fleet: Fleet) -> None:
    fleet.add("one")
    with pytest.raises(TrueportError, match="There is no Ray cluster at nowhere"):
        fleet.run(engine="ray", address="nowhere")


def test_a_model_is_exported_and_proven(fleet: Fleet, cluster: Any) -> None:
    """No stand-in here: the real worker exports and proves on a node."""
    fleet.plan.write_text(f'[[model]]\nmodel = "{EXAMPLES / "bert-sentiment"}"\n')
    summary = run(fleet.plan, out=fleet.url, engine="ray", address=cluster.address)
    assert summary.exit_code == 0, summary.rows
    assert fleet.artefacts() == ["bert-sentiment"]
    row = summary.rows[0]
    assert row["status"] == "proven" and row["node"] and row["peak"] > 10**8
    assert {clause["clause"] for clause in row["clauses"]} >= {"shapes", "padding", "inert"}

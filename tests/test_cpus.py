from __future__ import annotations

import os

import pytest

from edgellm import cpus


@pytest.fixture
def four_hyperthreads(monkeypatch):
    """Logical CPUs 0 to 3 on two physical cores, without a quota."""
    monkeypatch.setattr(cpus, "available_cpus", lambda: {0, 1, 2, 3})
    monkeypatch.setattr(cpus, "_core_of", lambda cpu: f"{cpu % 2},{cpu % 2 + 2}")
    monkeypatch.setattr(cpus, "cgroup_quota", lambda: None)


def test_two_hyperthreads_of_a_core_count_once(four_hyperthreads):
    assert cpus.default_threads() == 2


@pytest.mark.parametrize(("quota", "threads"), [(8.0, 2), (1.5, 1), (0.2, 1)])
def test_a_quota_limits_the_threads(four_hyperthreads, monkeypatch, quota, threads):
    monkeypatch.setattr(cpus, "cgroup_quota", lambda: quota)
    assert cpus.default_threads() == threads


def test_this_machine_gets_at_least_one_and_at_most_its_cpus():
    assert 1 <= cpus.default_threads() <= os.cpu_count()


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_the_quota_of_a_cgroup(tmp_path, files, quota):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert cpus.cgroup_quota(tmp_path) == quota

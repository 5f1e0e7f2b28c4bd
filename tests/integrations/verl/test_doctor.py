"""What `klmonitor doctor` says of the verl that is installed."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.verl


def test_the_doctor_names_the_trainers_and_how_they_load_us(verl):
    from klmonitor_verl.doctor import report

    found = report()
    names = [name for name, _, _ in found]
    assert "RayPPOTrainer (V0)" in names
    old = verl.__version__.startswith(("0.6", "0.7", "0.8"))
    assert ("PPOTrainer (V1)" in names) != old
    for _, text, good in found:
        assert good, text
        assert ("VERL_USE_EXTERNAL_MODULES=klmonitor_verl" in text) == old
        assert "old_policy" in text


def test_attach_says_what_to_do_instead():
    import klmonitor_verl

    with pytest.raises(TypeError, match=r"\+klmonitor.x=y"):
        klmonitor_verl.attach(object())


@pytest.mark.parametrize(
    ("version", "loads"),
    [
        ("0.9.1", True),
        ("0.10.0.dev0", True),
        ("1.0rc1", True),
        ("main", True),
        ("", True),
        ("0.8.0.post1", False),
    ],
)
def test_a_version_that_nobody_knows_is_no_error(version, loads):
    from klmonitor_verl.doctor import loads_plugins

    assert loads_plugins(version) == loads


def test_the_doctor_of_an_unknown_verl_says_what_is_bound(verl, monkeypatch):
    from klmonitor_verl.doctor import report

    monkeypatch.setattr(verl, "__version__", "2.0rc1+unknown")
    assert all(good and "loads klmonitor by itself" in text for _, text, good in report())

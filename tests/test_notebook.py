"""What notebooks show of a report and of a handle."""

import xml.etree.ElementTree as ElementTree

import torch

from klmonitor import Monitor
from klmonitor.hooks.handle import Handle


def test_a_report_is_a_table_of_its_means():
    generator = torch.Generator().manual_seed(0)
    ref = -torch.rand(8, 5, generator=generator)
    monitor = Monitor(rules={"limit": {"policy_ref": 1e-6}})
    monitor.observe(policy=ref - 0.25, ref=ref)
    report = monitor.step(3)
    root = ElementTree.fromstring(report._repr_html_())
    assert "step 3" in "".join(root.itertext())
    (row,) = root.findall("table/tbody/tr")
    cells = [cell.text for cell in row]
    assert cells[0] == "policy_ref"
    assert float(cells[1].split()[0]) == -0.25
    assert cells[4] == "40"
    assert report.alerts
    for alert in report.alerts:
        assert alert.text() in [block.text for block in root.findall("pre")]


def test_a_handle_is_its_description_escaped():
    handle = Handle(None, lambda: None, lambda: "policy <b> & more\nref")
    root = ElementTree.fromstring(handle._repr_html_())
    assert root.text == "policy <b> & more\nref"

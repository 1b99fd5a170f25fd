"""Verdicts in the format of JUnit, which services for continuous integration read."""

from __future__ import annotations

from collections.abc import Iterable
from xml.etree import ElementTree

from .engine.base.report import Report


def junit(reports: Iterable[tuple[str, Report]]) -> bytes:
    """Return a test suite in which a layer of a kernel is a test case."""
    suite = ElementTree.Element("testsuite", name="lemmata prove")
    for name, report in reports:
        for layer in report.layers:
            case = ElementTree.SubElement(
                suite, "testcase", classname=name, name=layer.name, time=f"{layer.seconds:.3f}"
            )
            if not layer.holds:
                words = f"{layer.proved} of {layer.conditions} conditions proved"
                ElementTree.SubElement(case, "failure", message=words).text = "\n".join(map(str, layer.failures))
        if report.unexplained:
            case = ElementTree.SubElement(suite, "testcase", classname=name, name="mutants")
            ElementTree.SubElement(case, "failure", message="mutants that survive").text = "\n".join(report.unexplained)
    suite.set("tests", str(len(suite)))
    suite.set("failures", str(len(suite.findall("testcase/failure"))))
    return bytes(ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True))

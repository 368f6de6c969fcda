"""Findings, and their three forms: text, JSON, SARIF."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trueport.words import clean, count_words

SEVERITIES = ("error", "warning", "note")
"""``error``: real rows are wrong for inputs that users send. ``warning``: they can be. ``note``: only empty rows change."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        rule: the rule's id, as in docs/rules.
        severity: ``error``, ``warning`` or ``note``.
        node: the node's name, or the value that it gives where it has none; an input's name where no node is at fault.
        module: the path of the module that the node comes from; empty where the names do not tell.
        message: what is wrong, one sentence without a full stop.
        mend: what to do about it.
        repairable: whether ``trueport repair`` does it.
    """

    rule: str
    severity: str
    node: str
    module: str
    message: str
    mend: str
    repairable: bool = False

    def line(self) -> str:
        """``error summed-masks at model.layers.0.self_attn (Softmax_7): ...``, one line."""
        place = f"{self.module} ({self.node})" if self.module else self.node
        return clean(f"{self.severity} {self.rule} at {place}: {self.message}. {self.mend}")


@dataclass(frozen=True)
class Report:
    """What an audit found.

    Attributes:
        file: the name of the graph's file.
        nodes: nodes of the graph.
        attentions: attention layers that the audit knew as such.
        findings: the worst first.
        unjudged: softmaxes and attention operators that a mask reaches, and of which the experiment could say nothing.
    """

    file: str
    nodes: int
    attentions: int
    findings: tuple[Finding, ...]
    unjudged: int = 0

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings for which the command's exit code is 1."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def clean(self) -> bool:
        """Neither errors nor warnings."""
        return all(finding.severity == "note" for finding in self.findings)

    def of(self, rule: str) -> tuple[Finding, ...]:
        """The findings of one rule."""
        return tuple(finding for finding in self.findings if finding.rule == rule)

    def text(self) -> str:
        """A line for each finding, and one that sums up."""
        counts = [count_words(sum(f.severity == s for f in self.findings), s) for s in SEVERITIES]
        said = ", ".join(words for words in counts if not words.startswith("0 ")) or "nothing found"
        total = f"{clean(self.file)}: {said} in {count_words(self.attentions, 'attention layer')}"
        if self.unjudged:
            total += f"; whether padding alone is hidden in {count_words(self.unjudged, 'layer')} is not known"
        return "\n".join([*(finding.line() for finding in self.findings), total + "."])

    def to_json(self) -> dict[str, Any]:
        """The report as plain data; ``schema_version`` 1."""
        findings = [asdict(finding) for finding in self.findings]
        whole = {"schema_version": 1, "file": self.file, "nodes": self.nodes, "attentions": self.attentions}
        whole["unjudged"] = self.unjudged
        return dict(clean(whole | {"findings": findings}))

    def to_sarif(self, rules: Sequence[Any]) -> dict[str, Any]:
        """SARIF 2.1.0 (OASIS), for code hosts and editors.

        Args:
            rules: the registry.
        """
        from trueport import __version__

        driver = {
            "name": "trueport audit",
            "version": __version__,
            "rules": [
                {"id": rule.id, "shortDescription": {"text": rule.title}, "help": {"text": rule.mend}} for rule in rules
            ],
        }
        results = [
            {
                "ruleId": finding.rule,
                "level": finding.severity,
                "message": {"text": f"{finding.message}. {finding.mend}"},
                "locations": [
                    {
                        "physicalLocation": {"artifactLocation": {"uri": self.file}},
                        "logicalLocations": [
                            {"name": finding.node, "fullyQualifiedName": finding.module or finding.node}
                        ],
                    }
                ],
            }
            for finding in self.findings
        ]
        return {
            "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
            "version": "2.1.0",
            "runs": [{"tool": {"driver": driver}, "results": clean(results)}],
        }

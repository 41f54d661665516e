"""Workflows: typed graphs of generators, from YAML files or Python, validated completely before anything runs."""

from studio.workflow.builder import Handle, Workflow
from studio.workflow.check import compile_file
from studio.workflow.draw import mermaid, svg
from studio.workflow.graph import Graph
from studio.workflow.run import FlowResult, NodeReport, WorkflowRun

__all__ = ["FlowResult", "Graph", "Handle", "NodeReport", "Workflow", "WorkflowRun", "compile_file", "mermaid", "svg"]

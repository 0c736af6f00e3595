"""Agents and tools of other frameworks, made those of this one."""

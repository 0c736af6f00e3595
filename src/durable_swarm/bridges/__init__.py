"""Agents of other frameworks, made agents of this one."""

"""The engine's interface for programs and the service."""

"""What programs and the service hold: the engine's face."""

"""SQL only: one repository for each table."""

"""SQL and nothing else: a repository for each table."""

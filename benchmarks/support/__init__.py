"""What several benchmarks share: workers as processes (`fleet`), and a PostgreSQL and what it does (`server`)."""
